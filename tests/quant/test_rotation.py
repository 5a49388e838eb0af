from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitqwen import _native
from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType
from bitqwen.quant import Recipe, Rotation, Statistics, TensorPlan

V3, Q4 = TensorPlan(TensorType.V3, "lloyd"), TensorPlan(TensorType.Q4_K, "mse")
COLS = {"a": 256, "b": 512, "c": 192}


def hadamard(size):
    out = np.ones((1, 1))
    while len(out) < size:
        out = np.block([[out, out], [out, -out]])
    return out / np.sqrt(size)


@pytest.fixture
def rotation():
    return Rotation.of({"a": V3, "b": Q4, "c": Q4}, COLS)


def test_every_quantised_matrix_of_whole_blocks_is_rotated_where_one_has_a_codebook(rotation):
    assert rotation.names == {"a", "b"}
    assert rotation.signs.shape == (512,)
    assert set(rotation.signs.tolist()) == {1, -1}
    floats = {"a": V3, "b": TensorPlan(TensorType.F16, "plain")}
    assert Rotation.of(floats, COLS).names == {"a"}
    assert not Rotation.of({"a": Q4, "b": Q4}, COLS).names


def test_signs_are_the_same_on_every_machine(rotation):
    first = "".join("+" if sign > 0 else "-" for sign in rotation.signs[:24])
    assert first == "+---+++++++-+-+-++----++"
    narrow = Rotation.of({"a": V3}, COLS)
    np.testing.assert_array_equal(narrow.signs, rotation.signs[:256])


@given(rows=st.integers(1, 9), blocks=st.integers(1, 3), threads=st.integers(1, 4), seed=st.integers(0, 99))
def test_it_is_the_matrix_that_the_format_says(rows, blocks, threads, seed):
    random = np.random.default_rng(seed)
    signs = random.choice([-1, 1], 128 * blocks).astype(np.int8)
    values = random.standard_normal((rows, 128 * blocks)).astype(np.float32)
    rotation = Rotation(frozenset(), signs)
    expected = (values * signs).reshape(rows, blocks, 128) @ hadamard(128)
    found = rotation.turned(values, threads=threads)
    np.testing.assert_allclose(found, expected.reshape(rows, -1), atol=1e-5)
    np.testing.assert_allclose(rotation.back(found, threads=threads), values, atol=1e-5)


def test_products_and_their_energy_stay(rotation):
    random = np.random.default_rng(0)
    matrix = random.standard_normal((24, 256)).astype(np.float32)
    inputs = (random.standard_normal((600, 256)) * np.exp(random.standard_normal(256))).astype(np.float32)
    moments = inputs.T @ inputs / np.float32(600)
    known = rotation.statistics(Statistics(np.diag(moments).copy(), moments, 600))
    turned = rotation.turned(inputs)
    np.testing.assert_allclose(turned @ rotation.turned(matrix).T, inputs @ matrix.T, atol=2e-3)
    np.testing.assert_allclose(known.moments, turned.T @ turned / 600, atol=1e-3 * moments.max())
    np.testing.assert_array_equal(known.importance, np.diag(known.moments))
    assert known.samples == 600


def test_what_is_known_of_columns_alone_is_shared_out_among_those_they_are_mixed_with(rotation):
    importance = np.arange(256, dtype=np.float32)
    known = rotation.statistics(Statistics(importance, None, 9))
    means = rotation.statistics(Statistics(importance, np.diag(importance))).importance
    np.testing.assert_allclose(known.importance, means, rtol=1e-4)
    assert known.moments is None
    assert known.samples == 9


@pytest.mark.parametrize("tensor_type", [TensorType.V2, TensorType.V3, TensorType.Q3_K])
@pytest.mark.parametrize("recipe", ["fit+rotate", "fit+rotate+gptq+descent"])
def test_a_recipe_quantises_the_rotated_matrix(rotation, tensor_type, recipe):
    random = np.random.default_rng(1)
    matrix = random.standard_normal((24, 256)).astype(np.float32)
    matrix[:, 7] *= 40  # a column that stands out
    inputs = random.standard_normal((600, 256)).astype(np.float32)
    moments = inputs.T @ inputs / np.float32(600)
    statistics = Statistics(np.diag(moments).copy(), moments)
    method = "mse" if tensor_type == TensorType.Q3_K else "lloyd"

    def run(rows, known, turned=None):
        return Recipe.parse(recipe).run(rows, tensor_type, method=method, statistics=known, rotation=turned)

    def lost(found, turned=None):
        values = _native.dequantize(int(tensor_type), found.data, 24, 256, codebook=found.codebook)
        return np.square((matrix - (values if turned is None else turned.back(values))) @ inputs.T).sum()

    found = run(matrix, statistics, rotation)
    expected = run(rotation.turned(matrix), rotation.statistics(statistics))
    np.testing.assert_array_equal(found.data, expected.data)
    assert lost(found, rotation) < 0.1 * np.square(matrix @ inputs.T).sum()
    if method == "lloyd":  # a scale for 128 weights; Q3_K's is for 16
        assert lost(found, rotation) < lost(run(matrix, statistics))


@pytest.mark.parametrize(("cols", "signs"), [(64, 64), (192, 192), (256, 128), (0, 0)])
def test_columns_that_are_no_blocks_are_refused(cols, signs):
    with pytest.raises(UsageError, match="a multiple of 128 and at least as many signs"):
        _native.rotate(np.zeros((2, cols), np.float32), np.ones(signs, np.int8))
