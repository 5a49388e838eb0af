from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitqwen import _native
from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType
from bitqwen.quant import Recipe, Statistics, quantize, sweeps
from bitqwen.quant.grid import Grid

TYPES = [TensorType.Q2_0, TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_0, TensorType.Q4_K, TensorType.Q6_K]


def random_inputs(rows=32, cols=512, tokens=2000, seed=0):
    """A matrix and inputs [tokens, cols] that are unequal and depend on each other."""
    random = np.random.default_rng(seed)
    weights = (random.standard_t(5, (rows, cols)) * 0.02).astype(np.float32)
    few = random.standard_normal((tokens, 24)) @ random.standard_normal((24, cols))
    own = random.standard_normal((tokens, cols)) * np.exp(random.standard_normal(cols))
    return weights, (few + own).astype(np.float32)


def problem(tokens=2000, **options):
    """A matrix and its inputs' second moments."""
    weights, inputs = random_inputs(tokens=tokens, **options)
    return weights, inputs.T @ inputs / np.float32(tokens)


def run(recipe, weights, moments, tensor_type, method="mse"):
    statistics = Statistics(np.diag(moments).copy(), moments)
    return Recipe.parse(recipe).run(weights, tensor_type, method=method, statistics=statistics)


def loss(encoded, weights, moments, tensor_type):
    values = _native.dequantize(int(tensor_type), encoded.data, *weights.shape)
    return sweeps.output_error(weights - values, moments)


@pytest.mark.parametrize("tensor_type", TYPES)
def test_each_step_loses_less_of_the_outputs(tensor_type):
    weights, moments = problem()
    losses = [
        loss(run(recipe, weights, moments, tensor_type), weights, moments, tensor_type)
        for recipe in ("fit", "fit+gptq", "fit+gptq+codes", "fit+gptq+descent")
    ]
    assert losses[1] < 0.4 * losses[0]
    assert losses[2] < losses[1]
    assert losses[3] < losses[1]


def test_feedback_is_the_textbook_s():
    """Column by column, each rounding error spread over the columns that are left by least squares."""
    weights, moments = problem(rows=4, cols=64, tokens=500)
    fitted = quantize(weights, TensorType.Q4_0, method="mse")
    grid = Grid.read(TensorType.Q4_0, fitted.data, *weights.shape)
    sweeps.feedback(weights, grid, moments, damping=0.01)

    exact = sweeps.damped(moments, 0.01).astype(np.float64)
    order = np.argsort(-np.diag(moments), kind="stable")
    left = weights.astype(np.float64)
    expected = np.zeros_like(grid.codes)
    for place, column in enumerate(order):
        rest = order[place + 1 :]
        step = grid.steps[:, column // 32]
        code = np.clip(np.rint(left[:, column] / step), -8, 7)
        expected[:, column] = code
        lost = left[:, column] - step * code
        if rest.size:
            # The best change of the columns that are left, when this one is off by `lost`.
            follow = np.linalg.solve(exact[np.ix_(rest, rest)], exact[rest, column])
            left[:, rest] += np.outer(lost, follow)
    # float32 against float64: a code on the edge may fall to the other side.
    assert (grid.codes == expected).mean() > 0.98


@pytest.mark.parametrize("cols", [1, 96, 256, 700])
def test_factors_multiply_to_the_damped_moments(cols):
    _, moments = problem(cols=cols)
    order = np.random.default_rng(1).permutation(cols)
    factor = sweeps.factored(moments, 0.1, order)
    np.testing.assert_array_equal(np.diag(factor.upper), 1.0)
    assert not np.tril(factor.upper, -1).any()
    exact = sweeps.damped(moments, 0.1)[np.ix_(order, order)]
    product = factor.upper * factor.diagonal @ factor.upper.T
    np.testing.assert_allclose(product, exact, rtol=1e-4, atol=1e-5 * exact.max())


def test_moments_of_too_few_inputs_are_damped_more():
    random = np.random.default_rng(0)
    inputs = random.standard_normal((3, 512)).astype(np.float32)
    factor = sweeps.factored(inputs.T @ inputs, 1e-12, np.arange(512))
    assert np.isfinite(factor.upper).all()
    assert (factor.diagonal > 0).all()


def test_descent_finds_a_minimum_that_no_single_change_improves():
    weights, moments = problem(rows=3, cols=64, tokens=300)
    fitted = quantize(weights, TensorType.Q2_0, method="mse")
    grid = Grid.read(TensorType.Q2_0, fitted.data, *weights.shape)
    sweeps.descend(weights, grid, moments, damping=0.01, rounds=20, fit_steps=False)
    dense = sweeps.damped(moments, 0.01)
    reached = sweeps.output_error(weights - grid.values(), dense)
    for row, column in itertools.product(range(3), range(64)):
        before = int(grid.codes[row, column])
        for code in range(-1, 3):
            grid.codes[row, column] = code
            assert sweeps.output_error(weights - grid.values(), dense) >= reached * (1 - 1e-5)
        grid.codes[row, column] = before


@pytest.mark.parametrize("tensor_type", TYPES)
def test_descent_never_loses(tensor_type):
    weights, moments = problem(seed=3)
    fitted = quantize(weights, tensor_type, method="mse")
    grid = Grid.read(tensor_type, fitted.data, *weights.shape)
    dense = sweeps.damped(moments, 0.01)
    losses = [sweeps.output_error(weights - grid.values(), dense)]
    for _ in range(3):
        sweeps.descend(weights, grid, moments, damping=0.01, rounds=1)
        losses.append(sweeps.output_error(weights - grid.values(), dense))
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(losses))
    # What was computed is what the bytes hold.
    again = Grid.read(tensor_type, grid.write(), *weights.shape)
    np.testing.assert_allclose(again.values(), grid.values(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dependent", [True, False])
def test_fewer_inputs_than_columns_do_no_harm(dependent):
    """What is learned from 60 inputs of 512 columns holds for 4,000 others of the same kind."""
    weights, inputs = random_inputs(tokens=4060)
    if not dependent:
        inputs = np.random.default_rng(5).standard_normal(inputs.shape).astype(np.float32)
    few, others = inputs[:60], inputs[60:]
    moments = few.T @ few / np.float32(60)
    unseen = others.T @ others / np.float32(4000)

    def lost(recipe, samples):
        statistics = Statistics(np.diag(moments).copy(), moments, samples)
        encoded = Recipe.parse(recipe).run(weights, TensorType.Q2_0, method="mse", statistics=statistics)
        return loss(encoded, weights, unseen, TensorType.Q2_0)

    if dependent:
        assert lost("fit+gptq+descent", 60) < 0.7 * lost("fit", 0)
    else:
        assert lost("fit+gptq+descent", 0) > 1.15 * lost("fit", 0)
        assert lost("fit+gptq+descent", 60) < 1.1 * lost("fit", 0)


def test_shrinking_leaves_what_many_inputs_have_shown():
    _, inputs = random_inputs(tokens=4000, cols=64)
    moments = inputs.T @ inputs / np.float32(4000)
    np.testing.assert_allclose(sweeps.shrunk(moments, 4000), moments, rtol=0.05, atol=0.05)
    independent = np.random.default_rng(0).standard_normal((30, 64)).astype(np.float32)
    noise = independent.T @ independent / np.float32(30)
    left = sweeps.shrunk(noise, 30) - np.diag(np.diag(noise))
    assert np.abs(left).max() < 0.3 * np.abs(noise - np.diag(np.diag(noise))).max()


def test_columns_that_no_input_reaches_and_rows_of_zeros():
    weights, moments = problem()
    moments[10:20] = moments[:, 10:20] = 0
    weights[3] = 0
    for tensor_type in TYPES:
        encoded = run("fit+gptq+descent", weights, moments, tensor_type)
        values = _native.dequantize(int(tensor_type), encoded.data, *weights.shape)
        assert np.isfinite(values).all()
        assert not values[3].any()


def test_the_same_for_any_number_of_threads():
    weights, moments = problem()
    statistics = Statistics(np.diag(moments).copy(), moments)
    recipe = Recipe.parse("fit+gptq+descent")
    one, many = (
        recipe.run(weights, TensorType.Q2_K, method="mse", statistics=statistics, threads=threads)
        for threads in (1, 3)
    )
    np.testing.assert_array_equal(one.data, many.data)


def test_ternary_keeps_to_three_levels():
    weights, moments = problem()
    encoded = run("fit+gptq+descent", weights, moments, TensorType.TQ2_0, method="ternary")
    plain = run("fit", weights, moments, TensorType.TQ2_0, method="ternary")
    assert loss(encoded, weights, moments, TensorType.TQ2_0) < loss(plain, weights, moments, TensorType.TQ2_0)
    wide = run("fit+gptq", weights, moments, TensorType.Q2_0, method="ternary")
    assert set(np.unique(Grid.read(TensorType.Q2_0, wide.data, *weights.shape).codes)) <= {-1, 0, 1}


@pytest.mark.parametrize("text", ["gptq", "fit+nothing", "fit+gptq:0", "fit+gptq:x", "fit+descent:99", ""])
def test_recipes_that_are_none(text):
    with pytest.raises(UsageError, match="recipe") as caught:
        Recipe.parse(text)
    assert "gptq" in caught.value.hint
    assert "descent" in caught.value.hint


def test_a_recipe_s_numbers():
    assert Recipe.parse("fit").steps == ()
    assert Recipe.parse("fit+gptq:0.05+descent").steps == (("gptq", 0.05), ("descent", 2))


def test_damping_takes_a_share_off_correlations_and_lifts_columns_hardly_seen():
    moments = np.array([[9.0, 3.0, 0.0], [3.0, 3.0, -0.3], [0.0, -0.3, 0.0]], np.float32)
    found = sweeps.damped(moments, 0.3)
    mean = 4.0
    np.testing.assert_allclose(np.diag(found), np.array([9.0, 3.0, 0.0]) + 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(found[0, 1], 0.7 * 3.0, rtol=1e-6)
    np.testing.assert_allclose(found, found.T)
    assert np.linalg.eigvalsh(found).min() > 0
    alone = sweeps.damped(moments, 1.0)
    np.testing.assert_array_equal(alone, np.diag(np.diag(alone)))
