"""The first commands of the original plan, as it spells them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitqwen.gguf import GGUFFile
from helpers.fake_hub import FakeRepository, fake_hub

ROOT = Path(__file__).parents[2]


def script(name: str, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / name, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120"},
        timeout=300,
    )


def test_convert_writes_two_bits(tiny_folder, tmp_path):
    result = script("utils/convert-qwen25-to-gguf.py", tiny_folder, "--output", tmp_path / "out.gguf")
    assert result.returncode == 0, result.stderr
    file = GGUFFile(tmp_path / "out.gguf")
    assert file.tensors["blk.0.ffn_down.weight"].type.name == "Q2_0"
    assert " -> " not in result.stderr


def test_convert_debug_logs_each_tensor(tiny_folder, tmp_path):
    output = tmp_path / "out.gguf"
    result = script("utils/convert-qwen25-to-gguf.py", tiny_folder, "--output", output, "--debug")
    assert result.returncode == 0, result.stderr
    for name in GGUFFile(output).tensors:
        (line,) = [line for line in result.stderr.splitlines() if line.startswith(f"{name}: ")]
        for part in (
            " x " if "weight" in name and "norm" not in name else ": ",
            " -> ",
            "squared error",
            " s",
        ):
            assert part in line


def test_convert_errors_have_no_trace(tmp_path):
    result = script("utils/convert-qwen25-to-gguf.py", "no such thing", "--output", tmp_path / "out.gguf")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "no such thing" in result.stderr


def test_run_inference_answers_once(tiny_gguf, bitqwen):
    options = ["-n", "8", "-t", "1", "-c", "256"]
    result = script("run_inference.py", "-m", tiny_gguf, "-p", "the fox", *options, "-temp", "0")
    assert result.returncode == 0, result.stderr
    same = bitqwen("run", tiny_gguf, "-p", "the fox", "--raw", *options, "--temp", "0")
    assert result.stdout == same.stdout


def test_run_inference_chats_with_the_prompt_as_system_prompt(tiny_gguf, bitqwen):
    options = ["-n", "8", "-t", "1", "-c", "256"]
    result = script(
        "run_inference.py", "-m", tiny_gguf, "-p", "Bark.", "-cnv", *options, "-temp", "0", stdin="the fox\n"
    )
    assert result.returncode == 0, result.stderr
    same = bitqwen("chat", tiny_gguf, "--system", "Bark.", *options, "--temp", "0", stdin="the fox\n")
    assert result.stdout == same.stdout
    assert result.stdout.strip()


def test_run_inference_as_written(tiny_gguf, tmp_path):
    result = script("run_inference.py", "-m", tiny_gguf, "-p", "Hello!", "-cnv", "-n", "4", stdin="Hi\n")
    assert result.returncode == 0, result.stderr


def test_e2e_benchmark_as_written(tiny_folder, tmp_path):
    from bitqwen.convert import convert

    convert(tiny_folder, tmp_path / "ggml-model-tl1-qwen25.gguf", "w2")
    result = script(
        "utils/e2e_benchmark.py", "-m", tmp_path / "ggml-model-tl1-qwen25.gguf", "-p", "512", "-n", "128"
    )
    assert result.returncode == 0, result.stderr
    for words in ("pp512", "tg128", "±", "MB/token"):
        assert words in result.stdout


def test_generate_kernels_as_written(tmp_path):
    folder = tmp_path / "preset_kernels" / "qwen25-7b"
    result = script("utils/generate-qwen25-kernels.py", "7B", "--output", folder)
    assert result.returncode == 0, result.stderr
    committed = ROOT / "preset_kernels" / "qwen25-7b"
    assert {p.name: p.read_text() for p in folder.iterdir()} == {
        p.name: p.read_text() for p in committed.iterdir()
    }


def test_generate_kernels_for_any_config(tiny_folder, tmp_path):
    result = script(
        "utils/generate-qwen25-kernels.py", "--config", tiny_folder / "config.json", "--output", tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("quant_type", ["tl1", "tl2", "w4"])
def test_convert_helper_as_written(tiny_folder, tmp_path, quant_type):
    result = script(
        "utils/convert-helper-qwen25.py", tiny_folder, "--quant-type", quant_type, "--output", tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert GGUFFile(tmp_path / f"ggml-model-{quant_type}-qwen25.gguf").tensors
    assert "try: " in result.stdout


def test_setup_as_written_from_a_hub(tiny_folder, tmp_path):
    """The plan's own command, with a hub on this machine that has a small model under that name."""
    command = f"{ROOT}/utils/setup-qwen25.py --model Qwen/Qwen2.5-7B-Instruct --quant-type tl1"
    with fake_hub() as hub:
        hub.repositories["Qwen/Qwen2.5-7B-Instruct"] = FakeRepository(tiny_folder)
        result = subprocess.run(
            [sys.executable, *command.split()],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=hub.environment(tmp_path / "hub") | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            timeout=300,
        )
    assert result.returncode == 0, result.stderr
    made = tmp_path / "models/qwen2.5-7b/ggml-model-tl1-qwen25.gguf"
    chat = script("run_inference.py", "-m", made, "-p", "Hello!", "-cnv", "-n", "4", stdin="Hi\n")
    assert chat.returncode == 0, chat.stderr


def test_the_conversion_checks_pass_and_fail():
    arguments = ["--only", "quantisation", "-p", "no:cacheprovider"]
    result = script("utils/test-qwen25-conversion.py", *arguments)
    assert result.returncode == 0, result.stdout
    assert result.stdout.splitlines()[-1] == "PASS: every check"
    failed = script("utils/test-qwen25-conversion.py", *arguments, "-k", "no test has this name")
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-1] == "FAIL: quantisation"


def test_the_example_runs():
    result = script("examples/qwen25-bitnet-example.py")
    assert result.returncode == 0, result.stderr
    for words in ("== The machine", "== The kernels", "== The file", "== An answer", "tg8"):
        assert words in result.stdout


def test_requirements_install_this_package_and_what_its_checks_import():
    lines = (ROOT / "requirements-qwen25.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [".[check]"]
    (check,) = re.findall(r"^check = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    names = re.findall(r'"(\w+)>=', check)
    assert {"pytest", "gguf"} <= set(names)
    program = (ROOT / "utils/test-qwen25-conversion.py").read_text()
    assert [name for name in names if f'"{name}"' not in program] == []


@pytest.mark.parametrize(
    "name", ["run_inference.py", *(f"utils/{path.name}" for path in sorted((ROOT / "utils").glob("*.py")))]
)
def test_scripts_stay_thin(name):
    assert len((ROOT / name).read_text().splitlines()) < 60


@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("make"), reason="needs cmake and make")
@pytest.mark.parametrize("option", ["BITNET_ARM_TL1", "BITNET_X86_TL2"])
def test_cmake_options_as_written(option, tmp_path):
    result = subprocess.run(
        ["cmake", f"-D{option}=ON", "-B", tmp_path / "build"], cwd=ROOT, capture_output=True, text=True
    )
    if "DOCTEST_INCLUDE_DIR" in result.stderr:
        pytest.skip("needs doctest")
    assert result.returncode == 0, result.stderr
    targets = subprocess.run(
        ["cmake", "--build", tmp_path / "build", "--target", "help"], capture_output=True, text=True
    ).stdout
    family = "tl1" if platform.machine() in {"aarch64", "arm64"} else "tl2"
    assert f"lut_benchmark_{family}" in targets
    assert "measure_test" in targets
    assert "_native" not in targets
    assert (family in option.lower()) != ("all else is built" in result.stderr)
