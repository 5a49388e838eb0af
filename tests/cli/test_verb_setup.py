from __future__ import annotations

import json

import pytest

from bitqwen.gguf import GGUFFile


def steps(result):
    assert result.returncode == 0, result.stderr
    return {step["name"]: step for step in json.loads(result.stdout)["steps"]}


def test_every_step_is_done_once(bitqwen, tiny_folder, tmp_path):
    first = steps(bitqwen("setup", tiny_folder, "-o", tmp_path, "--json"))
    assert list(first) == ["fetch", "kernels", "convert", "tune", "try"]
    assert not first["convert"]["skipped"]
    output = tmp_path / "ggml-model-w4-qwen25.gguf"
    made = output.stat().st_mtime_ns
    again = steps(bitqwen("setup", tiny_folder, "-o", tmp_path, "--json"))
    assert again["kernels"]["skipped"]
    assert not first["tune"]["skipped"]
    assert again["tune"]["skipped"]
    assert again["convert"]["skipped"]
    assert output.stat().st_mtime_ns == made
    assert again["try"]["result"] == first["try"]["result"]


def test_what_is_damaged_or_gone_is_made_again(bitqwen, tiny_folder, tmp_path):
    bitqwen("setup", tiny_folder, "-o", tmp_path, "--json")
    output = tmp_path / "ggml-model-w4-qwen25.gguf"
    good = output.read_bytes()
    output.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    next((tmp_path / "kernels").glob("*.h")).unlink()
    again = steps(bitqwen("setup", tiny_folder, "-o", tmp_path, "--json"))
    assert not again["kernels"]["skipped"]
    assert not again["convert"]["skipped"]
    assert output.read_bytes() == good


def test_what_was_only_touched_is_not(bitqwen, tiny_folder, tmp_path):
    bitqwen("setup", tiny_folder, "-o", tmp_path, "--json")
    (tmp_path / "ggml-model-w4-qwen25.gguf").touch()
    assert steps(bitqwen("setup", tiny_folder, "-o", tmp_path, "--json"))["convert"]["skipped"]


@pytest.mark.parametrize("name", ["tl1", "tl2"])
def test_lut_types_are_the_ternary_layout_with_a_hint(bitqwen, tiny_folder, tmp_path, name):
    result = bitqwen("setup", tiny_folder, "-o", tmp_path, "--quant-type", name)
    assert result.returncode == 0, result.stderr
    metadata = GGUFFile(tmp_path / f"ggml-model-{name}-qwen25.gguf").metadata
    assert metadata["bitqwen.scheme"] == "ternary"
    assert json.loads(metadata["bitqwen.settings"])["kernel_hint"] == name
    family = "tl1" if name == "tl1" else "tl2"
    assert (tmp_path / "kernels" / f"lut-kernels-{family}.h").exists()
    assert "memory" in result.stderr
    assert "free" in result.stderr


def test_fit_takes_the_widest_scheme(bitqwen, tiny_folder, tmp_path):
    result = bitqwen("setup", tiny_folder, "-o", tmp_path, "--fit", "100GB", "--json")
    assert steps(result)
    assert (tmp_path / "ggml-model-f16-qwen25.gguf").exists()
    refused = bitqwen("setup", tiny_folder, "-o", tmp_path, "--fit", "1kB")
    assert refused.returncode == 2
    assert "no scheme fits" in refused.stderr


def test_user_errors(bitqwen, tiny_folder, tiny_gguf, tmp_path):
    unknown = bitqwen("setup", tiny_folder, "-o", tmp_path, "--quant-type", "tl9")
    assert (unknown.returncode, "tl9" in unknown.stderr) == (2, True)
    both = bitqwen("setup", tiny_folder, "--fit", "1GB", "--scheme", "w4")
    assert both.returncode == 2
    size = bitqwen("setup", tiny_folder, "--fit", "big")
    assert (size.returncode, "no size" in size.stderr) == (2, True)
    assert bitqwen("setup", tiny_folder, "-o", tmp_path, "--json").returncode == 0
    other = bitqwen("setup", tiny_gguf, "-o", tmp_path)
    assert (other.returncode, "not from" in other.stderr) == (2, True)
