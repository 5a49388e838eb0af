"""The real model's file, against the gguf package's reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gguf
from bitqwen.gguf import GGUFFile, TensorType, keys

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def file(real_model: Path) -> GGUFFile:
    return GGUFFile(real_model)


def test_hyperparameters_and_vocabulary(file: GGUFFile) -> None:
    assert file.metadata[keys.ARCHITECTURE] == "qwen2"
    assert file.metadata["qwen2.embedding_length"] == 1536
    tokens, merges = file.metadata[keys.TOKENS], file.metadata[keys.MERGES]
    assert (len(tokens), len(merges)) == (151936, 151387)
    assert tokens[file.metadata[keys.EOS_ID]] == "<|im_end|>"
    assert merges[0] == "Ġ Ġ"
    assert len(file.metadata[keys.TOKEN_TYPES]) == 151936


def test_everything_in_it_as_the_gguf_package_reads_it(file: GGUFFile, real_model: Path) -> None:
    theirs = gguf.GGUFReader(real_model)  # takes some ten seconds: it makes arrays of every token
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(file.metadata) == list(fields)
    for key, field in fields.items():
        assert file.metadata[key] == field.contents(), key
    assert list(file.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        ours = file.tensors[tensor.name]
        assert (ours.offset, ours.nbytes, int(ours.type)) == (
            tensor.data_offset,
            tensor.n_bytes,
            tensor.tensor_type,
        )
        assert ours.shape == tuple(int(n) for n in tensor.shape[::-1])


@pytest.mark.parametrize(
    "name", ["blk.0.attn_norm.weight", "blk.3.attn_q.weight", "blk.5.ffn_down.weight", "blk.2.attn_k.bias"]
)
def test_values_of_every_type_in_it(file: GGUFFile, name: str) -> None:
    tensor = file.tensors[name]
    assert isinstance(tensor.type, TensorType)
    ours = file.read(name)
    theirs = gguf.quants.dequantize(file.raw(name), gguf.GGMLQuantizationType(int(tensor.type)))
    np.testing.assert_array_equal(ours.reshape(-1), theirs.reshape(-1))
    assert 0 < np.abs(ours).max() < 1000
