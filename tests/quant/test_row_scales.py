import numpy as np
import pytest

from bitqwen import _native
from bitqwen.errors import UnsupportedModelError
from bitqwen.gguf import TensorType, codebook_shape, type_info
from bitqwen.quant import quantize, row_scales
from bitqwen.quant.row_scales import has_scales, scale_rows

ROWS, COLS = 6, 512
SCALED = [each for each in TensorType if has_scales(each)]


def random_data(tensor_type: TensorType) -> np.ndarray:
    """Bytes of a matrix: any codes, and scales that are numbers."""
    random = np.random.default_rng(0)
    info = type_info(tensor_type)
    blocks = random.integers(0, 256, (ROWS * COLS // info.block_size, info.block_bytes), np.uint8)
    first, count = row_scales._SCALES[tensor_type]
    scales = random.uniform(0.5, 1.0, (len(blocks), count)).astype("<f2")
    blocks[:, first : first + 2 * count] = scales.view(np.uint8)
    return blocks.reshape(-1)


@pytest.fixture(params=SCALED, ids=lambda each: each.name)
def tensor_type(request):
    return request.param


@pytest.fixture
def values(tensor_type):
    codebook = None
    if codebook_shape(tensor_type):
        matrix = np.random.default_rng(1).standard_normal((ROWS, COLS)).astype(np.float32)
        codebook = quantize(matrix, tensor_type, method="lloyd").codebook
    return lambda data: _native.dequantize(int(tensor_type), data, ROWS, COLS, codebook=codebook)


def test_a_row_times_a_power_of_two_is_that_row_to_the_last_bit(tensor_type, values):
    data = random_data(tensor_type)
    factors = np.array([1, 2, 0.5, 4, 1, 0.25], np.float32)
    before = values(data)
    assert np.isfinite(before).all()
    assert np.abs(before).max(axis=1).min() > 0
    np.testing.assert_array_equal(values(scale_rows(data, tensor_type, factors)), before * factors[:, None])


def test_other_factors_are_off_by_no_more_than_half_precision(tensor_type, values):
    data = random_data(tensor_type)
    factors = np.linspace(0.9, 1.1, ROWS, dtype=np.float32)
    before = values(data)
    after = values(scale_rows(data, tensor_type, factors))
    assert np.abs(after - before * factors[:, None]).max() < 4 * np.abs(before).max() * 2**-11


def test_the_data_given_stays_as_it_was():
    data = random_data(TensorType.Q8_0)
    before = data.copy()
    scale_rows(data, TensorType.Q8_0, np.full(ROWS, 2, np.float32))
    np.testing.assert_array_equal(data, before)


def test_types_whose_blocks_have_scales_all_have_theirs_here():
    assert {each for each in TensorType if type_info(each).block_size > 1} == set(SCALED)
    with pytest.raises(UnsupportedModelError, match="F16 has no scales"):
        scale_rows(np.zeros(4, np.uint8), TensorType.F16, np.ones(2, np.float32))
