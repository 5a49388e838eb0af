from __future__ import annotations

import numpy as np
import pytest

from bitqwen import _native
from bitqwen.errors import UnsupportedModelError, UsageError
from bitqwen.gguf import TensorType
from bitqwen.quant import quantize
from bitqwen.quant.grid import Grid, is_grid

GRIDS = [
    TensorType.Q4_0,
    TensorType.Q2_0,
    TensorType.Q2_K,
    TensorType.Q3_K,
    TensorType.Q4_K,
    TensorType.Q5_K,
    TensorType.Q6_K,
]


def matrix(rows=24, cols=768, seed=0):
    return (np.random.default_rng(seed).standard_t(4, (rows, cols)) * 0.03).astype(np.float32)


def grid_of(tensor_type, values):
    data = quantize(values, tensor_type, method="ternary" if tensor_type == TensorType.TQ2_0 else "mse").data
    return Grid.read(tensor_type, data, *values.shape)


@pytest.mark.parametrize("tensor_type", [*GRIDS, TensorType.TQ2_0])
def test_a_grid_is_what_its_bytes_stand_for(tensor_type):
    values = matrix()
    grid = grid_of(tensor_type, values)
    expected = _native.dequantize(int(tensor_type), grid.data, *values.shape)
    np.testing.assert_allclose(grid.values(), expected, atol=1e-8, rtol=2e-7)
    np.testing.assert_array_equal(grid.write(), grid.data)
    assert grid.codes.min() == grid.low
    assert grid.codes.max() == grid.high


@pytest.mark.parametrize("tensor_type", [*GRIDS, TensorType.TQ2_0])
def test_any_codes_can_be_written(tensor_type):
    grid = grid_of(tensor_type, matrix())
    random = np.random.default_rng(1)
    grid.codes[:] = random.integers(grid.low, grid.high + 1, grid.codes.shape)
    np.testing.assert_array_equal(Grid.read(tensor_type, grid.write(), *grid.codes.shape).codes, grid.codes)


@pytest.mark.parametrize("tensor_type", GRIDS)
def test_steps_are_written_as_near_as_the_type_can(tensor_type):
    grid = grid_of(tensor_type, matrix())
    limits = {"Q2_K": 15, "Q3_K": 31, "Q4_K": 63, "Q5_K": 63, "Q6_K": 127}
    most = grid.units * limits.get(tensor_type.name, 0)
    wanted = (grid.steps * 0.7).astype(np.float32)
    grid.steps[:] = wanted
    written = Grid.read(tensor_type, grid.write(), *grid.codes.shape).steps
    slack = np.where(grid.units == 0, np.abs(wanted) * 2.0**-10, np.abs(grid.units) * 0.5001)
    inside = (grid.units == 0) | (np.abs(wanted) <= np.abs(most))
    assert inside.any()
    assert (np.abs(written - wanted)[inside] <= slack[inside]).all()


def test_float_types_are_no_grids():
    assert not is_grid(TensorType.F16)
    with pytest.raises(UnsupportedModelError, match="F16 is no"):
        Grid.read(TensorType.F16, np.zeros(64, np.uint8), 1, 32)


def test_bytes_of_another_shape_are_refused():
    with pytest.raises(UsageError, match="no Q4_0 matrix of 2 x 64"):
        _native.read_grid(int(TensorType.Q4_0), np.zeros(18, np.uint8), 2, 64)
