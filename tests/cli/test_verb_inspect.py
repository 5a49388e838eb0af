from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bitqwen.cli.inspection import inspect_path, memory_text
from bitqwen.engine import Model, memory
from bitqwen.gguf import GGUFFile, GGUFWriter, TensorType
from helpers.fake_hub import FakeRepository, fake_hub


def test_gguf_as_json(bitqwen, tiny_gguf):
    found = json.loads(bitqwen("inspect", tiny_gguf, "--json", "--tensors").stdout)
    file = GGUFFile(tiny_gguf)
    nbytes = sum(tensor.nbytes for tensor in file.tensors.values())
    weights = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    assert found["supported"] is True
    assert found["architecture"] == "qwen2"
    assert found["file_bytes"] == tiny_gguf.stat().st_size
    assert (found["tensors"], found["weights"], found["tensor_bytes"]) == (len(file.tensors), weights, nbytes)
    assert found["bits_per_weight"] == pytest.approx(8 * nbytes / weights)
    assert found["hyperparameters"]["hidden_size"] == 256
    assert found["hyperparameters"]["tied"] is True
    assert {row["type"]: row["bits_per_weight"] for row in found["types"]} == {"F16": 16, "F32": 32}
    assert [tensor["name"] for tensor in found["tensor_list"]] == list(file.tensors)
    assert found["metadata"]["tokenizer.ggml.tokens"] == "[512 values]"


@pytest.mark.parametrize("kv", ["f16", "q8", "q4", "int8"])
def test_memory_is_what_the_engine_takes(bitqwen, tiny_gguf, kv):
    result = bitqwen("inspect", tiny_gguf, "--json", "--context", "300", "--kv", kv, "-t", "1")
    told = json.loads(result.stdout)["memory"]
    taken = Model.open(tiny_gguf, context=300, kv=kv, threads=1).memory
    assert told["context"] == 300
    assert told["kv"] == kv
    assert 0 <= taken["cache"] - told["cache"] < 4096  # whole pages of memory
    assert told["scratch"] == taken["scratch"]
    assert told["weights"] == pytest.approx(taken["weights"], rel=0.02)
    assert told["total"] == told["weights"] + told["cache"] + told["scratch"]
    assert told["available"] > 0


def test_the_largest_context_that_fits_is_named(tiny_gguf, monkeypatch):
    found = inspect_path(tiny_gguf)
    asked = found.memory(1000, "f16", 1)
    assert asked["largest_context"] == found.config.max_context
    assert "fits into" in memory_text(asked, "f16")

    # A screened head gives way first.
    monkeypatch.setattr(memory, "available", lambda: asked["total"] - 1)
    plain = found.memory(1000, "f16", 1)
    assert plain["total"] < asked["total"]

    monkeypatch.setattr(memory, "available", lambda: plain["total"] - 1)
    tight = found.memory(1000, "f16", 1)
    largest = tight["largest_context"]
    assert 900 < largest < 1000
    assert found.memory(largest, "f16", 1)["total"] < plain["total"]
    assert found.memory(largest + 1, "f16", 1)["total"] >= plain["total"]
    assert "does not fit into" in memory_text(tight, "f16")
    assert f"The largest context that fits is {largest}." in memory_text(tight, "f16")

    monkeypatch.setattr(memory, "available", lambda: plain["weights"])
    assert found.memory(1000, "f16", 1)["largest_context"] == 0
    assert "No context fits" in memory_text(found.memory(1000, "f16", 1), "f16")


def test_folder(bitqwen, tiny_folder, tiny_gguf):
    found = json.loads(bitqwen("inspect", tiny_folder, "--json").stdout)
    file = json.loads(bitqwen("inspect", tiny_gguf, "--json").stdout)
    assert found["kind"] == "folder"
    assert found["bits_per_weight"] == 16
    assert found["weights"] == file["weights"]
    same = found["hyperparameters"].keys() - {"rms_norm_eps"}  # GGUF holds it as float32
    assert {name: found["hyperparameters"][name] for name in same} == {
        name: file["hyperparameters"][name] for name in same
    }


def test_text(bitqwen, tiny_gguf):
    text = bitqwen("inspect", tiny_gguf, "--tensors", "--context", "1000").stdout
    for words in ("hidden size", "bits per weight", "scheme", "f16", "F16", "context of 1000", "256 x 512"):
        assert words in text
    assert "blk.0.attn_q.weight" not in bitqwen("inspect", tiny_gguf).stdout


def test_weights_are_not_read(tiny_folder, tiny_gguf, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("bitqwen.gguf.GGUFFile.read", refuse)
    monkeypatch.setattr("bitqwen.gguf.GGUFFile.raw", refuse)
    monkeypatch.setattr("bitqwen.checkpoints.huggingface.HuggingFaceCheckpoint.read", refuse)
    assert inspect_path(tiny_folder).total.weights == inspect_path(tiny_gguf).total.weights > 0


def test_a_model_that_bitqwen_does_not_run_is_shown_all_the_same(bitqwen, tmp_path):
    path = tmp_path / "other.gguf"
    with GGUFWriter(path) as writer:
        writer.add_metadata({"general.architecture": "llama", "llama.block_count": 7})
        writer.add_tensor("token_embd.weight", (4, 32), TensorType.Q8_0)
        writer.begin()
        writer.write("token_embd.weight", np.zeros(4 * 34, np.uint8))
        writer.finish()
    result = bitqwen("inspect", path)
    assert result.returncode == 0
    assert "not supported" in result.stdout
    assert "llama.block count" in result.stdout
    found = json.loads(bitqwen("inspect", path, "--json").stdout)
    assert found["supported"] is False
    assert found["memory"] is None
    assert found["bits_per_weight"] == 8.5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [(["nothing"], 2, ["nothing", "hub id"]), (["{file}", "-c", "5000"], 2, ["5000", "4096"])],
)
def test_wrong_use(bitqwen, tiny_gguf, arguments, code, words):
    result = bitqwen("inspect", *(argument.format(file=tiny_gguf) for argument in arguments))
    assert result.returncode == code
    assert all(word in result.stderr for word in words)


def test_a_folder_without_weights(bitqwen, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    result = bitqwen("inspect", tmp_path)
    assert result.returncode == 3
    assert "no weights" in result.stderr


def test_a_hub_id_by_its_configuration_alone(bitqwen, tiny_folder, tmp_path, monkeypatch):
    with fake_hub() as hub:
        hub.repositories["some/model"] = FakeRepository(tiny_folder)
        for name, value in hub.environment(tmp_path / "hub").items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        result = bitqwen("inspect", "some/model", "--json")
        assert result.returncode == 0, result.stderr
        assert {name for name, _ in hub.downloads} <= {"config.json"}
    found = json.loads(result.stdout)
    folder = json.loads(bitqwen("inspect", tiny_folder, "--json").stdout)
    assert found["kind"] == "hub"
    for key in ("hyperparameters", "weights", "bits_per_weight"):
        assert found[key] == folder[key]


def test_fit_of_a_model_and_of_all_sizes(bitqwen, tiny_gguf):
    rows = json.loads(bitqwen("inspect", tiny_gguf, "--fit", "1GB", "--json").stdout)["fits"]
    assert rows
    assert all(row["fits"] for row in rows)
    w4 = next(row for row in rows if row["scheme"] == "w4")
    f16 = next(row for row in rows if row["scheme"] == "f16")
    assert f16["file"] == json.loads(bitqwen("inspect", tiny_gguf, "--json").stdout)["tensor_bytes"]
    assert w4["memory"] < f16["memory"]
    sizes = json.loads(bitqwen("inspect", "--fit", "8GB", "--json").stdout)["fits"]
    fitting = {(row["model"], row["scheme"]) for row in sizes if row["fits"]}
    assert ("Qwen2.5-7B", "w4") in fitting
    assert ("Qwen2.5-72B", "w2") not in fitting
    table = bitqwen("inspect", "--fit", "8GB").stdout
    assert "Qwen2.5-7B" in table
    assert "not measured at this size" in " ".join(table.split())
    assert bitqwen("inspect", "--fit", "lots").returncode == 2
    assert bitqwen("inspect").returncode == 2


def test_tensors_of_types_that_are_never_read(bitqwen, tiny_checkpoint):
    from helpers.tiny_checkpoint import safetensors_bytes

    folder = tiny_checkpoint().folder
    header = {"position_ids": {"dtype": "I64", "shape": [3], "data_offsets": [0, 24]}}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(header, bytes(24)))
    found = json.loads(bitqwen("inspect", folder, "--json", "--tensors").stdout)
    assert found["tensor_list"] == [
        {"name": "position_ids", "type": "I64", "shape": [3], "nbytes": 24, "rotated": False}
    ]


def test_fit_shows_what_was_measured_at_the_size_it_was_measured_on(bitqwen, tiny_gguf):
    found = json.loads(bitqwen("inspect", "--fit", "8GB", "--json").stdout)
    assert found["measured_on"].startswith("Qwen2.5-Coder-1.5B")
    measured = {row["scheme"]: row["measured"] for row in found["fits"] if row["model"] == "Qwen2.5-1.5B"}
    assert measured["w4"]["verdict"] in {"faithful", "usable"}
    assert measured["ternary"]["verdict"] == "gibberish"
    assert measured["w4"]["kl"]["prose"] < measured["v3"]["kl"]["prose"]
    assert all(row["measured"] is None for row in found["fits"] if row["model"] != "Qwen2.5-1.5B")
    tiny = json.loads(bitqwen("inspect", tiny_gguf, "--fit", "8GB", "--json").stdout)["fits"]
    assert all(row["measured"] is None for row in tiny)
    said = bitqwen("inspect", "--fit", "2GB")
    assert "Qwen2.5-Coder-1.5B-Instruct" in " ".join(said.stderr.split())
