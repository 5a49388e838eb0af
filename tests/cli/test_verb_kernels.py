from __future__ import annotations

import configparser
import json

import pytest


def test_a_size(bitqwen, tmp_path):
    result = bitqwen("kernels", "generate", "7B", "--target", "arm", "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "kernel_config-tl1.ini",
        "lut-kernels-tl1.h",
    ]
    ini = configparser.ConfigParser()
    ini.read(tmp_path / "out" / "kernel_config-tl1.ini")
    assert {(ini.getint(s, "m"), ini.getint(s, "k")) for s in ini.sections()} == {
        (3584, 3584),
        (512, 3584),
        (18944, 3584),
        (3584, 18944),
    }
    assert all(ini.getint(s, "m") % ini.getint(s, "bm") == 0 for s in ini.sections())


def test_a_model_and_a_config_file_have_the_same_shapes(bitqwen, tiny_gguf, tiny_folder, tmp_path):
    found = []
    for i, source in enumerate(([tiny_gguf], [tiny_folder], ["--config", tiny_folder / "config.json"])):
        result = bitqwen("kernels", "generate", *source, "-o", tmp_path / str(i), "--json")
        assert result.returncode == 0, result.stderr
        found.append(json.loads(result.stdout)["kernels"])
    assert found[0] == found[1] == found[2]
    assert {kernel["target"] for kernel in found[0]} == {"arm", "x86", "avx512"}


def test_check_compiles_what_this_cpu_runs(bitqwen, tiny_gguf, tmp_path):
    result = bitqwen("kernels", "generate", tiny_gguf, "-o", tmp_path, "--check", "--json")
    if result.returncode == 6:
        pytest.skip("no C++ compiler here")
    checks = json.loads(result.stdout)["checks"]
    assert set(checks) == {"arm", "x86", "avx512"}
    assert all(value == "exact" or value.startswith("not run") for value in checks.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("7B",), "--output"),
        (("-o", "{tmp}"), "either MODEL or --config"),
        (("9B", "-o", "{tmp}"), "none of Qwen2.5's"),
        (("7B", "-o", "{tmp}", "--bm", "100"), "BM must be a multiple of bm"),
        (("--config", "{tmp}/none.json", "-o", "{tmp}"), "none.json"),
    ],
)
def test_user_errors(bitqwen, tmp_path, arguments, words):
    result = bitqwen("kernels", "generate", *(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert result.returncode in (2, 3)
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []
