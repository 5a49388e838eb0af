from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitqwen import _native
from bitqwen.errors import BitqwenError
from bitqwen.gguf import TensorType
from bitqwen.quant import Recipe, Statistics, sweeps, vector_sweeps
from bitqwen.quant.vector_sweeps import Vectors, pair_columns

TYPES = [TensorType.V2, TensorType.V2_5, TensorType.V3]


def problem(rows=24, cols=256, tokens=1500, seed=0):
    """A matrix and the moments of inputs that are unequal and depend on each other."""
    random = np.random.default_rng(seed)
    weights = (random.standard_t(5, (rows, cols)) * 0.02).astype(np.float32)
    few = random.standard_normal((tokens, 24)) @ random.standard_normal((24, cols))
    own = random.standard_normal((tokens, cols)) * np.exp(random.standard_normal(cols))
    inputs = (few + own).astype(np.float32)
    return weights, inputs.T @ inputs / np.float32(tokens)


def values(vectors):
    out = np.empty((vectors.codes.shape[0], 2 * vectors.codes.shape[1]), np.float32)
    out[:, pair_columns(out.shape[1])] = vectors.in_pairs()
    return out


def loss(vectors, weights, moments):
    return sweeps.output_error(weights - values(vectors), moments)


@pytest.mark.parametrize("tensor_type", TYPES)
def test_what_is_taken_apart_is_what_the_bytes_hold(tensor_type):
    weights, moments = problem()
    vectors = Vectors.fit(weights, tensor_type, importance=np.diag(moments).copy())
    decoded = _native.dequantize(int(tensor_type), vectors.write(), *weights.shape, codebook=vectors.codebook)
    np.testing.assert_allclose(values(vectors), decoded, rtol=1e-6)


@pytest.mark.parametrize("tensor_type", TYPES)
def test_each_step_loses_less_of_the_outputs(tensor_type):
    weights, moments = problem()
    losses = []
    for recipe in ("fit", "fit+gptq:0.05", "fit+gptq:0.05+codes", "fit+gptq:0.05+descent"):
        statistics = Statistics(np.diag(moments).copy(), moments)
        encoded = Recipe.parse(recipe).run(weights, tensor_type, method="lloyd", statistics=statistics)
        decoded = _native.dequantize(
            int(tensor_type), encoded.data, *weights.shape, codebook=encoded.codebook
        )
        losses.append(sweeps.output_error(weights - decoded, moments))
        assert encoded.error == pytest.approx(float(np.square(weights - decoded).sum()), rel=1e-3)
    assert losses[1] < 0.5 * losses[0]
    assert losses[2] < losses[1]
    assert losses[3] < losses[1]


def test_feedback_chooses_the_pair_that_costs_least_after_all_others_have_made_up():
    """By brute force: for each pair and point, the least that the columns after it can leave."""
    weights, moments = problem(rows=2, cols=128, tokens=400)
    vectors = Vectors.fit(weights, TensorType.V2, importance=np.diag(moments).copy())
    vector_sweeps.feedback(weights, vectors, moments, damping=0.05)

    exact = sweeps.damped(moments, 0.05).astype(np.float64)
    columns = pair_columns(128).reshape(-1, 2)
    order = np.argsort(-np.diag(moments)[columns].sum(axis=1), kind="stable")
    points = vectors.codebook.astype(np.float64)
    left = weights.astype(np.float64)
    expected = np.zeros_like(vectors.codes)
    for place, pair in enumerate(order):
        here, rest = columns[pair], columns[order[place + 1 :]].ravel()
        cost = exact[np.ix_(here, here)]
        follow = np.zeros((2, 0))
        if rest.size:
            follow = np.linalg.solve(exact[np.ix_(rest, rest)], exact[np.ix_(rest, here)]).T
            cost = cost - exact[np.ix_(here, rest)] @ follow.T
        for row in range(2):
            lost = left[row, here] - vectors.scales[row, 0] * points
            code = int(np.argmin(np.einsum("ij,jk,ik->i", lost, cost, lost)))
            expected[row, pair] = code
            left[row, rest] += lost[code] @ follow
    # float32 against float64: a pair between two points may fall to the other one.
    assert (vectors.codes == expected).mean() > 0.97


@pytest.mark.parametrize("tensor_type", TYPES)
def test_descent_never_loses_and_ends_where_no_pair_can_improve(tensor_type):
    weights, moments = problem(rows=2, cols=128, tokens=300)
    vectors = Vectors.fit(weights, tensor_type, importance=np.diag(moments).copy())
    dense = sweeps.damped(moments, 0.02)
    losses = [loss(vectors, weights, dense)]
    for _ in range(3):
        vector_sweeps.descend(weights, vectors, moments, damping=0.02, rounds=1)
        losses.append(loss(vectors, weights, dense))
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_array_equal(vectors.scales, vectors.scales.astype(np.float16).astype(np.float32))

    vector_sweeps.descend(weights, vectors, moments, damping=0.02, rounds=30, fit_scales=False)
    reached = loss(vectors, weights, dense)
    codes = 2 * len(vectors.codebook) if tensor_type != TensorType.V2 else len(vectors.codebook)
    for row, pair in itertools.product(range(2), range(0, 64, 7)):
        before = int(vectors.codes[row, pair])
        for code in range(codes):
            vectors.codes[row, pair] = code
            assert loss(vectors, weights, dense) >= reached * (1 - 1e-5)
        vectors.codes[row, pair] = before


def test_rows_of_zeros_and_columns_that_no_input_reaches():
    weights, moments = problem()
    moments[10:30] = moments[:, 10:30] = 0
    weights[3] = 0
    for tensor_type in TYPES:
        statistics = Statistics(np.diag(moments).copy(), moments)
        encoded = Recipe.parse("fit+gptq+descent").run(
            weights, tensor_type, method="lloyd", statistics=statistics
        )
        decoded = _native.dequantize(
            int(tensor_type), encoded.data, *weights.shape, codebook=encoded.codebook
        )
        assert np.isfinite(decoded).all()
        assert not decoded[3].any()


def test_shapes_and_codes_that_do_not_fit():
    weights, moments = problem(rows=2, cols=128, tokens=300)
    vectors = Vectors.fit(weights, TensorType.V2)
    blocks = np.zeros(64, np.int32)
    error = np.zeros((2, 128), np.float32)

    def descend(codes=vectors.codes, block_of=blocks, moments=moments, tensor_type=TensorType.V2):
        _native.descend_pairs(
            int(tensor_type),
            vectors.codebook,
            codes.copy(),
            block_of,
            vectors.scales,
            moments,
            error.copy(),
            error.copy(),
            True,
        )

    descend()
    for wrong in (
        {"codes": np.full_like(vectors.codes, 16)},
        {"block_of": blocks + 1},
        {"block_of": blocks[:5]},
        {"moments": moments[:5]},
        {"tensor_type": TensorType.Q4_K},
    ):
        with pytest.raises(BitqwenError):
            descend(**wrong)
