"""What a conversion decides before it writes: types, the file's type, a shared embedding."""

from __future__ import annotations

import numpy as np
import pytest

import gguf
from bitqwen.convert import convert
from bitqwen.errors import UsageError
from bitqwen.gguf import GGUFFile, keys
from bitqwen.quant import get, names
from helpers.tiny_checkpoint import write_safetensors


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        ("f16", "MOSTLY_F16"),
        ("q8_0", "MOSTLY_Q8_0"),
        ("q4_0", "MOSTLY_Q4_0"),
        ("w4", "MOSTLY_Q4_K_S"),
        ("ternary", "MOSTLY_TQ2_0"),
        ("bitnet", "MOSTLY_TQ2_0"),
    ],
)
def test_file_types_are_llama_cpp_s(scheme, name):
    assert get(scheme).file_type == gguf.LlamaFileType[name]


def test_the_file_type_is_that_of_most_weights(tiny_checkpoint, tmp_path):
    # Rows of 96 and 160 values: no multiple of 256, so that w4 takes its second choice.
    source = tiny_checkpoint(hidden=96, intermediate=160, heads=4, kv_heads=2)
    convert(source.folder, tmp_path / "out.gguf", "w4")
    metadata = GGUFFile(tmp_path / "out.gguf").metadata
    assert metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0


# 896 is the width of the 0.5B model: a multiple of 64 and of no 256.
@pytest.mark.parametrize("scheme", names())
def test_widths_that_are_no_multiple_of_256(tiny_checkpoint, tmp_path, scheme):
    source = tiny_checkpoint(hidden=896, intermediate=512, layers=1, heads=14, kv_heads=2)
    report = convert(source.folder, tmp_path / "out.gguf", scheme, force=True)
    types = {t.name: t.tensor_type for t in report.tensors}
    assert types["token_embd.weight"] == ("F16" if scheme == "f16" else "Q8_0")
    expected = {"w4": "Q4_0", "w2": "Q2_0", "ternary": "Q2_0", "bitnet": "Q2_0"}
    expected |= {"q6_k": "Q8_0", "q5_k": "Q8_0", "q3_k": "Q4_0", "q2_k": "Q4_0"}
    expected = expected.get(scheme, scheme.upper().replace(".", "_"))
    assert types["blk.0.attn_q.weight"] == expected
    file = GGUFFile(tmp_path / "out.gguf")
    for name, tensor in file.tensors.items():
        beside_weights = name == keys.SIGNS or name.endswith(".codebook")
        assert tensor.type_name == ("I8" if beside_weights else types[name])
        assert np.isfinite(file.read(name)).all()


def test_bitnet_has_no_type_for_rows_of_other_lengths(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(hidden=96, intermediate=160, heads=4, kv_heads=2)
    with pytest.raises(UsageError, match="no type for rows of 96 values: a multiple of 64"):
        convert(source.folder, tmp_path / "out.gguf", "bitnet", force=True)
    assert list(tmp_path.iterdir()) == []


def test_a_head_s_type_for_a_model_without_one_is_refused(tiny_checkpoint, tmp_path):
    for stored in (False, True):
        source = tiny_checkpoint(tied=True, stored_head=stored)
        with pytest.raises(UsageError, match="head is its embedding") as caught:
            convert(source.folder, tmp_path / "out.gguf", "w4", head="q8_0")
        assert "--embedding q8_0" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_types_of_embedding_and_head_can_be_chosen(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(tied=False)
    convert(source.folder, tmp_path / "out.gguf", "w2", embedding="q4_0", head="bf16")
    file = GGUFFile(tmp_path / "out.gguf")
    assert file.tensors["token_embd.weight"].type_name == "Q4_0"
    assert file.tensors["output.weight"].type_name == "BF16"
    assert file.metadata["bitqwen.settings"] == '{"embedding": "q4_0", "head": "bf16"}'


def test_a_head_that_a_tied_model_stores_is_left_out(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(tied=True, stored_head=True)
    convert(source.folder, tmp_path / "out.gguf", "q8_0")
    assert "output.weight" not in GGUFFile(tmp_path / "out.gguf").tensors


@pytest.mark.parametrize(("change", "stored"), [(0.0, False), (1e-3, True)])
def test_only_equal_matrices_are_one_where_nothing_was_quantised(tiny_checkpoint, tmp_path, change, stored):
    source = tiny_checkpoint(tied=False, dtype="F32")
    weights = dict(source.weights)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["lm_head.weight"][-1, -1] += np.float32(change)
    write_safetensors(source.folder / "model.safetensors", weights, "F32")
    convert(source.folder, tmp_path / "out.gguf", "f16")
    assert ("output.weight" in GGUFFile(tmp_path / "out.gguf").tensors) is stored
