from __future__ import annotations

import numpy as np
import pytest

from bitqwen import _native
from bitqwen.calibrate.backward import first_token_weights, run_back
from bitqwen.calibrate.moments import second_moments
from bitqwen.checkpoints import open_checkpoint
from bitqwen.gguf import TensorType
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import Recipe, Statistics

CHUNK = 64


def inputs_with_a_sink(chunks=24, cols=256, size=0.1, seed=0):
    """Inputs [tokens, cols] that depend on each other; first tokens are short and nearly the same."""
    random = np.random.default_rng(seed)
    tokens = chunks * CHUNK
    mixing = np.random.default_rng(7).standard_normal((32, cols))
    x = random.standard_normal((tokens, 32)) @ mixing + random.standard_normal((tokens, cols))
    sink = np.random.default_rng(8).standard_normal(cols) * size
    x[::CHUNK] = sink + 0.01 * size * random.standard_normal((chunks, cols))
    return x.astype(np.float32)


def lost_by_token(recipe, moments, unseen):
    weights = (np.random.default_rng(3).standard_normal((64, unseen.shape[1])) * 0.02).astype(np.float32)
    statistics = Statistics(np.diag(moments).copy(), moments)
    encoded = Recipe.parse(recipe).run(weights, TensorType.Q2_K, method="mse", statistics=statistics)
    values = _native.dequantize(int(TensorType.Q2_K), encoded.data, *weights.shape)
    off = np.square(unseen @ (weights - values).T).sum(axis=1)
    of = np.square(unseen @ weights.T).sum(axis=1)
    first = np.arange(len(unseen)) % CHUNK == 0
    return off[first].sum() / of[first].sum(), off[~first].sum() / of[~first].sum()


def test_sweeps_keep_a_short_first_token_only_if_it_counts():
    x, unseen = inputs_with_a_sink(), inputs_with_a_sink(seed=1)
    plain, counted = second_moments(x), second_moments(x, chunk=CHUNK, first_weight=2000.0)
    fitted = lost_by_token("fit", plain, unseen)
    swept = lost_by_token("fit+gptq+descent", plain, unseen)
    right = lost_by_token("fit+gptq+descent", counted, unseen)
    assert swept[1] < 0.7 * fitted[1]  # what is common gains
    assert swept[0] > 0.6 * fitted[0]  # the first token does not
    assert right[0] < 0.25 * swept[0]  # unless it counts,
    assert right[1] < 1.15 * swept[1]  # which costs the others little


@pytest.mark.parametrize("weight", [0.0, 1.0, 50.0])
def test_moments_are_weighted_means(weight, monkeypatch):
    monkeypatch.setattr("bitqwen.calibrate.moments._ROWS", 1000)
    monkeypatch.setattr("bitqwen.calibrate.moments._COLUMNS", 12)
    x = inputs_with_a_sink(chunks=400, cols=32)  # enough that hardly anything is shrunk
    weights = np.where(np.arange(len(x)) % CHUNK == 0, weight, 1.0)
    expected = (x.T * weights) @ x / weights.sum()
    found = second_moments(x, chunk=CHUNK, first_weight=weight)
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.max())
    np.testing.assert_allclose(np.diag(found), np.diag(expected), rtol=1e-3)


def test_what_only_first_tokens_show_is_not_shrunk():
    x = inputs_with_a_sink(chunks=2, cols=64)
    x[np.arange(len(x)) % CHUNK != 0] = 0
    sinks = x[::CHUNK]
    found = second_moments(x, chunk=CHUNK, first_weight=1.0)
    np.testing.assert_allclose(found, sinks.T @ sinks / len(x), rtol=1e-4, atol=1e-9)


def test_first_tokens_weigh_as_much_as_their_gradients(tiny_checkpoint):
    source = tiny_checkpoint(layers=2, dtype="F32")
    checkpoint = open_checkpoint(source.folder)
    config = config_from_hf(checkpoint.config, source="test")
    ids = np.random.default_rng(0).integers(0, 400, (6, 16))
    slopes = {}
    run_back(checkpoint, config, ids, lambda name, x, y, slope: slopes.setdefault(name, slope))
    found = first_token_weights(checkpoint, config, ids)
    assert set(found) == {spec.hf_name for spec in config.tensors() if spec.role == "matrix"}
    for name, slope in slopes.items():
        squares = np.square(slope.astype(np.float64)).sum(axis=1).reshape(6, 16)
        assert found[name] == pytest.approx(squares[:, 0].mean() / squares[:, 1:].mean(), rel=1e-3)
    # Every token of a chunk looks at the first one's value, and none at the last one's but itself.
    values = np.square(slopes["model.layers.1.self_attn.v_proj.weight"]).sum(axis=1).reshape(6, 16)
    assert values[:, 0].mean() > values[:, 8:].mean()
