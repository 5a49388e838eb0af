from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.gguf import GGUFFile, TensorType

PATH = Path(__file__).parents[2] / "benchmarks" / "neutral_source.py"


@pytest.fixture(scope="module")
def neutral():
    specification = importlib.util.spec_from_file_location("neutral_source", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "shape",
    [
        {"layers": 2, "heads": 4, "kv_heads": 2},
        {"layers": 1, "heads": 4, "kv_heads": 1, "head_dim": 32, "tied": False, "bias_scale": 2.0},
    ],
)
def test_the_function_is_the_same_and_no_matrix_is(tiny_checkpoint, tmp_path, neutral, shape):
    source = tiny_checkpoint(**shape, dtype="F16")
    plain, other = tmp_path / "plain.gguf", tmp_path / "neutral.gguf"
    convert(source.folder, plain, "f16")
    neutral.write(source.folder, other, tensor_type=TensorType.F32, seed=3)
    ids = np.random.default_rng(0).integers(0, 400, 40).tolist()
    expected = Model.open(plain, threads=1, kv="f16").logits(ids)
    found = Model.open(other, threads=1, kv="f16").logits(ids)
    # Keys and values are float16 in the cache, rotated or not.
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    files = GGUFFile(plain), GGUFFile(other)
    assert set(files[0].tensors) == set(files[1].tensors)
    for name, tensor in files[0].tensors.items():
        assert not np.allclose(files[0].read(name), files[1].read(name)), name
        if len(tensor.shape) > 1 and "embd" not in name and name != "output.weight":
            # Not a row or a column is a multiple of one that was there.
            first = np.abs(np.sort(files[1].read(name)[0] / np.abs(files[1].read(name)[0]).max()))
            rows = files[0].read(name)
            rows = np.abs(np.sort(rows / np.abs(rows).max(axis=1, keepdims=True), axis=1))
            assert not np.isclose(rows, first, atol=1e-5).all(axis=1).any(), name


def test_exact_in_float32(tiny_checkpoint, tmp_path, neutral):
    from bitqwen.calibrate.transformer import embed, rms_norm, run_layer
    from bitqwen.checkpoints import open_checkpoint
    from bitqwen.models.registry import config_from_hf

    source = tiny_checkpoint(layers=2, dtype="F16")
    neutral.write(source.folder, tmp_path / "neutral.gguf", tensor_type=TensorType.F32, seed=1)
    ids = np.random.default_rng(0).integers(0, 400, (2, 20))
    logits = []
    for path in (source.folder, tmp_path / "neutral.gguf"):
        checkpoint = open_checkpoint(path)
        config = config_from_hf(checkpoint.config, source="test")

        def weigh(names, _, checkpoint=checkpoint):
            return {name: checkpoint.read(name) for name in names}

        hidden = embed(checkpoint, config, ids.ravel())
        for layer in range(config.layers):
            run_layer(hidden, 20, layer, checkpoint, config, weigh)
        x = rms_norm(hidden, checkpoint.read("model.norm.weight"), config.rms_norm_eps)
        logits.append(x @ checkpoint.read("model.embed_tokens.weight").T)
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-4 * np.abs(logits[0]).max())
