from __future__ import annotations

import json

import numpy as np
import pytest

from bitqwen import quant
from bitqwen.errors import BitqwenError
from bitqwen.gguf import GGUFFile
from helpers.tiny_checkpoint import write_safetensors


def test_summary(bitqwen, tiny_folder, tmp_path):
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", "--scheme", "q8_0")
    assert result.returncode == 0, result.stderr
    size = (tmp_path / "m.gguf").stat().st_size
    for words in (str(tmp_path / "m.gguf"), "q8_0", f"{size:,} bytes", "8.500 in the layers' matrices"):
        assert words in result.stdout
    assert GGUFFile(tmp_path / "m.gguf").metadata["bitqwen.scheme"] == "q8_0"
    # The receipt, which is taken unless there is a reason not to.
    assert "faithful: answers like the original" in result.stdout
    assert "--no-receipt" in result.stderr
    assert GGUFFile(tmp_path / "m.gguf").metadata["bitqwen.receipt.verdict"] == "faithful"


def test_says_what_running_the_result_takes(bitqwen, tiny_folder, tmp_path):
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", "--no-receipt")
    assert "Memory for a context of 4096: " in result.stdout
    assert "does not fit" not in result.stdout + result.stderr


def test_a_result_too_large_for_this_machine_is_announced_before_anything_is_read(
    bitqwen, tiny_folder, tmp_path
):
    config = json.loads((tiny_folder / "config.json").read_text())
    huge = {"hidden_size": 16384, "num_attention_heads": 128, "num_key_value_heads": 8}
    huge |= {"intermediate_size": 1 << 18, "num_hidden_layers": 256}
    (tmp_path / "config.json").write_text(json.dumps(config | huge))
    result = bitqwen("convert", tmp_path, "-o", tmp_path / "m.gguf")
    warning, error = result.stderr.splitlines()[:2]
    assert warning.startswith("warning: running the result here. Memory for a context of 4096: ")
    assert "No context fits: take a scheme of fewer bits" in warning
    assert error.startswith("error: ")


def test_json(bitqwen, tiny_folder, tmp_path):
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", "--json")
    report = json.loads(result.stdout)
    file = GGUFFile(tmp_path / "m.gguf")
    assert report["receipt"]["domains"].keys() == {"prose", "code"}
    assert report["path"] == str(tmp_path / "m.gguf")
    assert report["scheme"] == "w4"
    assert report["bytes"] == file.nbytes
    assert {tensor["name"] for tensor in report["tensors"]} == set(file.tensors)
    weights = sum(np.prod(tensor.shape) for tensor in file.tensors.values())
    nbytes = sum(tensor.nbytes for tensor in file.tensors.values())
    assert report["bits_per_weight"] == pytest.approx(8 * nbytes / weights)
    assert sum(report["types"].values()) == len(file.tensors)
    assert 0 < report["relative_error"] < 0.02


def test_quiet_prints_the_path(bitqwen, tiny_folder, tmp_path):
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", "-q")
    assert result.stdout == f"{tmp_path / 'm.gguf'}\n"
    assert result.stderr == ""


def test_options_reach_the_file(bitqwen, tiny_folder, tmp_path):
    bitqwen(
        "convert", tiny_folder, "-o", tmp_path / "m.gguf", "--embedding", "f16", "-t", "1", "--no-receipt"
    )
    assert "bitqwen.receipt.verdict" not in GGUFFile(tmp_path / "m.gguf").metadata
    assert GGUFFile(tmp_path / "m.gguf").tensors["token_embd.weight"].type.name == "F16"


def test_requantising_says_so(bitqwen, tiny_folder, tmp_path):
    bitqwen("convert", tiny_folder, "-o", tmp_path / "q8.gguf", "--scheme", "q8_0", "--no-receipt")
    result = bitqwen("convert", tmp_path / "q8.gguf", "-o", tmp_path / "m.gguf")
    assert result.returncode == 0
    assert "warning: requantising" in result.stderr


def test_debug_logs_each_tensor(bitqwen, tiny_folder, tmp_path):
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", "--debug", "--no-receipt")
    lines = [line for line in result.stderr.splitlines() if line.startswith("blk.1.ffn_down.weight: ")]
    assert len(lines) == 1
    assert "256 x 512, BF16 -> Q4_K, squared error " in lines[0]
    assert sum(" -> " in line for line in result.stderr.splitlines()) == len(
        GGUFFile(tmp_path / "m.gguf").tensors
    )


def test_list_schemes(bitqwen):
    text = bitqwen("convert", "--list-schemes").stdout
    rows = json.loads(bitqwen("convert", "--list-schemes", "--json").stdout)["schemes"]
    assert [row["name"] for row in rows] == quant.names()
    for row in rows:
        assert row["name"] in text
        assert row["bits_per_weight"] == quant.get(row["name"]).bits_per_weight
        assert row["when"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, ["SOURCE is missing"]),
        (["{folder}"], 2, ["--output FILE is missing"]),
        (["{folder}", "-o", "{out}", "--scheme", "w3"], 2, ["w3", "w4"]),
        (["{folder}", "-o", "{out}", "--embedding", "q9"], 2, ["q9", "q8_0"]),
        (["{folder}", "-o", "{out}", "--scheme", "bitnet"], 2, ["gibberish", "--force"]),
        (["no such thing", "-o", "{out}"], 2, ["no such thing", "hub id"]),
        (["nobody/nothing", "-o", "{out}"], 7, ["nobody/nothing", "hint"]),
        (["{folder}", "-o", "{folder}/config.json/m.gguf"], 3, ["config.json"]),
    ],
)
def test_wrong_use(bitqwen, tiny_folder, tmp_path, arguments, code, words):
    places = {"folder": tiny_folder, "out": tmp_path / "m.gguf", "tmp": tmp_path}
    result = bitqwen("convert", *(argument.format(**places) for argument in arguments))
    assert result.returncode == code, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_numbers(bitqwen, tiny_checkpoint, tmp_path):
    made = tiny_checkpoint()
    made.weights["model.layers.0.mlp.up_proj.weight"][3, 5] = np.nan
    write_safetensors(made.folder / "model.safetensors", made.weights, "F32")
    result = bitqwen("convert", made.folder, "-o", tmp_path / "m.gguf")
    assert result.returncode == 5
    assert "model.layers.0.mlp.up_proj.weight" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_calibrated_with_a_receipt_that_inspect_shows(bitqwen, tiny_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("def add(first, second):\n    return first + second\n\n" * 300)
    path = tmp_path / "m.gguf"
    arguments = (
        "--scheme",
        "q2_k",
        "--calibration",
        text,
        "--calibration-tokens",
        "512",
        "--receipt",
        "--recipe",
        "fit+gptq",
    )
    result = bitqwen("convert", tiny_folder, "-o", path, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert 0 < report["lost_outputs"] < 0.3
    receipt = report["receipt"]
    assert receipt["bytes"] == report["bytes"]
    assert receipt["verdict"] in {"faithful", "usable", "degraded", "gibberish"}
    assert receipt["domains"]["prose"]["kl_low"] <= receipt["domains"]["prose"]["kl"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.gguf", "text.txt"]
    shown = bitqwen("inspect", path)
    assert receipt["verdict"] in shown.stdout
    assert f"{receipt['domains']['code']['kl']:.4f}" in shown.stdout
    again = json.loads(bitqwen("inspect", path, "--json").stdout)
    assert again["receipt"]["verdict"] == receipt["verdict"]


def test_nothing_quantised_needs_no_receipt(bitqwen, tiny_folder, tmp_path):
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", "--scheme", "f16", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["receipt"] is None


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_a_receipt_that_does_not_fit_is_left_out_and_said(tiny_folder, tmp_path, monkeypatch, capsys, what):
    from bitqwen.cli import receipts
    from bitqwen.convert import convert
    from bitqwen.engine import memory

    report = convert(tiny_folder, tmp_path / "m.gguf", "w4")
    if what == "memory":
        monkeypatch.setattr(memory, "available", lambda: 300 << 20)
    else:
        monkeypatch.setattr(receipts, "_SPARE_DISK", 1 << 60)
    options = {"quiet": False, "threads": 1}
    assert receipts.measure(report, str(tiny_folder), wanted=None, **options) is None
    said = capsys.readouterr().err
    assert "No receipt was taken: " in said
    assert f" of {what}" in said
    # Whoever insists gets it, or an error.
    assert receipts.measure(report, str(tiny_folder), wanted=True, **options).domains
    with pytest.raises(BitqwenError):
        receipts.measure(report, str(tmp_path / "none.gguf"), wanted=True, **options)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "fit+magic"], "'magic' is not known"),
        (["--calibration", "/no/such/file"], "/no/such/file"),
        (["--calibration", "default", "--calibration-tokens", "3"], "allowed: 512"),
        (["--calibration", "imatrix.gguf", "--recipe", "fit+gptq"], "its recipe is fit+rotate or fit."),
    ],
)
def test_calibrations_that_will_not_do(bitqwen, tiny_folder, tmp_path, arguments, words):
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", *arguments)
    assert result.returncode != 0
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_size_to_fit_into(bitqwen, tiny_folder, tmp_path):
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "w4.gguf", "--json")
    size = json.loads(result.stdout)["bytes"]
    path = tmp_path / "m.gguf"
    result = bitqwen("convert", tiny_folder, "-o", path, "--fit", f"{size + 70000}B")
    assert result.returncode == 0, result.stderr
    assert size - 150000 < path.stat().st_size <= size + 70000
    assert "KL divergence to expect" in result.stderr
    assert "would give" in result.stderr
    assert "mixed" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fit", "7000B"], "does not fit into 7,000 bytes"),
        (["--fit", "big"], "'big' is not a size"),
        (["--bits", "0.5"], "allowed are 1 to 16"),
        (["--bits", "4", "--fit", "1GB"], "one of them is enough"),
    ],
)
def test_sizes_that_will_not_do(bitqwen, tiny_folder, tmp_path, arguments, words):
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", *arguments)
    assert result.returncode != 0
    assert words in result.stderr


@pytest.mark.parametrize(
    ("text", "tokens", "origin", "writes"),
    [
        ("self", 512, "self-written", True),
        ("default", 1024, "shipped and self-written", True),
        ("default", 512, "shipped", False),  # one chunk: there is nothing to halve
        ("shipped", 1024, "shipped", False),
    ],
)
def test_texts_to_calibrate_on(bitqwen, tiny_folder, tmp_path, text, tokens, origin, writes):
    options = ["--calibration", text, "--calibration-tokens", str(tokens), "--scheme", "q4_0", "--no-receipt"]
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", *options)
    assert result.returncode == 0, result.stderr
    assert ("The model writes text to calibrate on." in result.stderr) == writes
    settings = json.loads(GGUFFile(tmp_path / "m.gguf").metadata["bitqwen.settings"])
    assert (settings["calibration"], settings["calibration_tokens"]) == (origin, str(tokens))
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_too_few_tokens_are_refused_before_the_model_writes(bitqwen, tiny_folder, tmp_path):
    options = ["--calibration", "self", "--calibration-tokens", "100"]
    result = bitqwen("convert", tiny_folder, "-o", tmp_path / "m.gguf", *options)
    assert result.returncode == 2
    assert "100 calibration tokens; allowed: 512 to" in result.stderr
    assert list(tmp_path.iterdir()) == []
