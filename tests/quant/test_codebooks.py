"""Codebooks: what the bytes mean, how little they lose, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from bitqwen import _native
from bitqwen.errors import ModelFileError, UnsupportedModelError, UsageError
from bitqwen.gguf import TensorType, codebook_shape
from bitqwen.quant import Statistics, codebooks, quantize

TYPES = [TensorType.V2, TensorType.V2_5, TensorType.V3]
MIRRORED = {TensorType.V2: False, TensorType.V2_5: True, TensorType.V3: True}
each_type = pytest.mark.parametrize("tensor_type", TYPES, ids=lambda t: t.name)


def heavy_tailed(rows, cols, seed=0):
    return (np.random.default_rng(seed).standard_t(5, (rows, cols)) * 0.02).astype(np.float32)


def random_codebook(tensor_type, rng):
    shape = codebook_shape(tensor_type)
    if MIRRORED[tensor_type]:
        return (2 * rng.integers(0, 64, shape) - 63).astype(np.int8)
    return rng.integers(-32, 32, shape).astype(np.int8)


def decoded(codes, scales, codebook, tensor_type):
    """The definition, in numpy: float32 [rows, cols]."""
    rows, pairs = codes.shape
    points = codebook.astype(np.float32)
    if MIRRORED[tensor_type]:
        points = np.concatenate([points, -points])
    fours = points[codes].reshape(rows, pairs // 4, 4, 2)  # row, group of eight columns, pair, coordinate
    levels = fours.swapaxes(2, 3).reshape(rows, 2 * pairs)
    return levels * np.repeat(scales, 128, axis=1)


@each_type
def test_bytes_mean_scale_times_the_code_s_point(tensor_type):
    rng = np.random.default_rng(1)
    codebook = random_codebook(tensor_type, rng)
    count = len(codebook) * (2 if MIRRORED[tensor_type] else 1)
    codes = rng.integers(0, count, (5, 192)).astype(np.uint8)
    scales = rng.uniform(-1, 1, (5, 3)).astype(np.float16).astype(np.float32)
    data = codebooks.pack(codes, scales, tensor_type)
    values = _native.dequantize(int(tensor_type), data, 5, 384, codebook=codebook)
    np.testing.assert_array_equal(values, decoded(codes, scales, codebook, tensor_type))


@each_type
def test_error_told_is_the_error_there_is(tensor_type):
    matrix = heavy_tailed(32, 512)
    encoded = quantize(matrix, tensor_type, method="lloyd")
    values = _native.dequantize(int(tensor_type), encoded.data, *matrix.shape, codebook=encoded.codebook)
    assert encoded.error == pytest.approx(np.square(values - matrix, dtype=np.float64).sum(), rel=1e-5)
    assert encoded.energy == pytest.approx(np.square(matrix, dtype=np.float64).sum(), rel=1e-6)


# Of Gaussian values the best scalar quantisers lose 0.1175 at 2 and 0.0345 at 3 bits.
@pytest.mark.parametrize(
    ("tensor_type", "bound"), [(TensorType.V2, 0.112), (TensorType.V2_5, 0.058), (TensorType.V3, 0.031)]
)
def test_gaussian_values_lose_less_than_levels_would(tensor_type, bound):
    matrix = np.random.default_rng(2).standard_normal((256, 1024)).astype(np.float32)
    assert quantize(matrix, tensor_type, method="lloyd").relative_error < bound


@each_type
def test_no_other_code_or_scale_nearby_is_better(tensor_type):
    matrix = heavy_tailed(4, 256)
    codebook = codebooks.fit(matrix, tensor_type)
    codes, scales = codebooks.assign(matrix, tensor_type, codebook)
    best = np.square(decoded(codes, scales, codebook, tensor_type) - matrix).sum()
    for pair in (0, 3, 77):
        for code in range(len(codebook)):
            other = codes.copy()
            other[2, pair] = code
            assert np.square(decoded(other, scales, codebook, tensor_type) - matrix).sum() >= best - 1e-7
    for factor in (0.9, 0.97, 1.03, 1.1):
        scaled = scales * np.float32(factor)
        assert np.square(decoded(codes, scaled, codebook, tensor_type) - matrix).sum() > best


@each_type
def test_important_columns_lose_less(tensor_type):
    matrix = heavy_tailed(64, 512)
    importance = np.where(np.arange(512) % 3 == 0, 50, 1).astype(np.float32)

    def lost(statistics):
        encoded = quantize(matrix, tensor_type, method="lloyd", statistics=statistics)
        values = _native.dequantize(int(tensor_type), encoded.data, *matrix.shape, codebook=encoded.codebook)
        return np.square(values - matrix)[:, ::3].sum()

    assert lost(Statistics(importance)) < 0.9 * lost(None)


@each_type
def test_threads_change_nothing_and_the_seed_only_the_sample(tensor_type):
    matrix = heavy_tailed(300, 4096)  # more blocks than are looked at
    one = codebooks.fit(matrix, tensor_type, threads=1)
    np.testing.assert_array_equal(codebooks.fit(matrix, tensor_type, threads=3), one)
    codes, scales = codebooks.assign(matrix, tensor_type, one, threads=1)
    more = codebooks.assign(matrix, tensor_type, one, threads=3)
    np.testing.assert_array_equal(more[0], codes)
    np.testing.assert_array_equal(more[1], scales)
    other = codebooks.fit(matrix, tensor_type, seed=1)
    assert (other != one).any()

    def lost(codebook):
        data = codebooks.pack(*codebooks.assign(matrix, tensor_type, codebook), tensor_type)
        return codebooks.error(data, matrix, tensor_type, codebook)[0]

    assert lost(other) == pytest.approx(lost(one), rel=0.02)


@each_type
def test_zeros_stay_zero_and_what_is_not_finite_is_told(tensor_type):
    matrix = heavy_tailed(4, 256)
    matrix[1] = 0
    encoded = quantize(matrix, tensor_type, method="lloyd")
    values = _native.dequantize(int(tensor_type), encoded.data, 4, 256, codebook=encoded.codebook)
    assert not values[1].any()
    matrix[2, 5] = np.nan
    assert not np.isfinite(quantize(matrix, tensor_type, method="lloyd").energy)
    matrix[2, 5] = 1e9  # beyond what float16 scales reach
    assert not np.isfinite(quantize(matrix, tensor_type, method="lloyd").error)
    assert quantize(np.zeros((2, 128), np.float32), tensor_type, method="lloyd").relative_error == 0


def test_misuse_is_refused():
    matrix = heavy_tailed(4, 256)
    codebook = codebooks.fit(matrix, TensorType.V2_5)
    with pytest.raises(UnsupportedModelError, match="Q4_K has no codebook"):
        codebooks.fit(matrix, TensorType.Q4_K)
    with pytest.raises(UsageError, match="4 rows of 192 values do not fit V2_5 blocks of 128"):
        codebooks.fit(np.ascontiguousarray(matrix[:, :192]), TensorType.V2_5)
    with pytest.raises(UsageError, match="one a column"):
        codebooks.fit(matrix, TensorType.V2_5, importance=np.ones(5, np.float32))
    with pytest.raises(ModelFileError, match="holds 2; odd numbers from -63 to 63"):
        codebooks.assign(matrix, TensorType.V2_5, np.full((16, 2), 2, np.int8))
    with pytest.raises(ModelFileError, match="needs a codebook of 32 x 2 values, not of 32"):
        codebooks.assign(matrix, TensorType.V3, codebook)
    codes, scales = codebooks.assign(matrix, TensorType.V2_5, codebook)
    with pytest.raises(UsageError, match="codes from 0 to 15"):
        codebooks.pack(codes, scales, TensorType.V2)
    with pytest.raises(UsageError, match="4 x 1 scales"):
        codebooks.pack(codes, np.ascontiguousarray(scales[:, :1]), TensorType.V2_5)
