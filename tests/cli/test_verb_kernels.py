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


def test_tune_then_show(bitqwen, tiny_gguf, own_cache):
    result = bitqwen("kernels", "show", tiny_gguf, "-t", 2)
    assert result.returncode == 0, result.stderr
    assert "not tuned" in result.stdout
    assert "bitqwen kernels tune" in result.stderr
    result = bitqwen("kernels", "tune", tiny_gguf, "-t", 2, "--json")
    assert result.returncode == 0, result.stderr
    tuned = json.loads(result.stdout)
    assert [file.name for file in (own_cache / "tuning").iterdir()] == [tuned["file"].rsplit("/", 1)[-1]]
    assert {(p["batch"], tuple(p["matrices"])) for p in tuned["products"]} == {
        (batch, names)
        for batch in ("1", "2-4", "prefill")
        for names in (
            ("attn_q", "attn_k", "attn_v", "token_embd"),  # as many rows as this vocabulary has
            ("attn_output",),
            ("ffn_gate", "ffn_up"),
            ("ffn_down",),
        )
    }
    shown = json.loads(bitqwen("kernels", "show", tiny_gguf, "-t", 2, "--json").stdout)
    assert shown["products"] == tuned["products"]
    assert shown["in_use"]
    table = bitqwen("kernels", "show", tiny_gguf, "-t", 2).stdout
    assert "best loser" in table
    assert "GB/s" in table
    everything = json.loads(bitqwen("kernels", "show", "-t", 2, "--json").stdout)["products"]
    assert len(everything) == len(tuned["products"])
    assert "Nothing was tuned" in bitqwen("kernels", "show", "-t", 1).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tune",), "MODEL"),
        (("tune", "9B"), "none of Qwen2.5's"),
        (("tune", "0.5B", "--scheme", "w9"), "'w9'"),
        (("tune", "{gguf}", "--scheme", "w2"), "has its own types"),
        (("show", "--scheme", "w2"), "--scheme needs a MODEL"),
        (("show", "none/at-all"), "none/at-all"),
    ],
)
def test_user_errors_of_tune_and_show(bitqwen, tiny_gguf, arguments, words):
    result = bitqwen("kernels", *(a.replace("{gguf}", str(tiny_gguf)) for a in arguments))
    assert result.returncode in (2, 3, 7)
    assert words in result.stderr


def test_a_damaged_tuning_file_is_one_sentence(bitqwen, tiny_gguf):
    from bitqwen.kernels import plans

    path = plans.here(2).path
    path.parent.mkdir(parents=True)
    path.write_text("{")
    result = bitqwen("run", tiny_gguf, "-p", "a", "-n", 2, "-t", 2, "--temp", 0)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("is ignored") == 1
    quiet = bitqwen("run", tiny_gguf, "-p", "a", "-n", 2, "-t", 2, "--temp", 0, "--no-tuning")
    assert quiet.returncode == 0, quiet.stderr
    assert "is ignored" not in quiet.stderr
    assert quiet.stdout == result.stdout
