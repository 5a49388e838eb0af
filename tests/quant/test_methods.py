from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gguf
from bitqwen import _native
from bitqwen.errors import UnsupportedModelError, UsageError
from bitqwen.gguf import TensorType, type_info
from bitqwen.quant import Statistics, quantize

FITTED = [
    (TensorType.Q4_0, "mse"),
    (TensorType.Q2_K, "mse"),
    (TensorType.Q3_K, "mse"),
    (TensorType.Q4_K, "mse"),
    (TensorType.Q5_K, "mse"),
    (TensorType.Q6_K, "mse"),
    (TensorType.Q2_0, "mse"),
    (TensorType.Q2_0, "ternary"),
    (TensorType.TQ2_0, "ternary"),
]
EVERY = [
    *FITTED,
    (TensorType.F16, "plain"),
    (TensorType.BF16, "plain"),
    (TensorType.Q8_0, "plain"),
    (TensorType.Q4_0, "plain"),
    (TensorType.Q2_0, "absmean"),
    (TensorType.TQ2_0, "absmean"),
]


def decoded(encoded, tensor_type, shape):
    return _native.dequantize(int(tensor_type), encoded.data, *shape)


def heavy_tailed(rows, cols, seed=0):
    return (np.random.default_rng(seed).standard_t(5, (rows, cols)) * 0.02).astype(np.float32)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_reference_rules_equal_the_gguf_package_byte_for_byte(name):
    matrix = heavy_tailed(64, 512)
    matrix[3, 32:64] = 0
    ours = quantize(matrix, TensorType[name], method="plain").data
    theirs = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(ours, theirs.reshape(-1))


@pytest.mark.parametrize(("name", "kind"), [("F16", np.float16), ("F32", np.float32)])
def test_float_types_are_numpy_s(name, kind):
    matrix = heavy_tailed(8, 96)
    matrix[0, :6] = [0, -0.0, 65504, 1e-8, -3e-8, 6e-5]
    assert quantize(matrix, TensorType[name], method="plain").data.tobytes() == matrix.astype(kind).tobytes()


def test_bfloat16_rounds_to_nearest_even():
    matrix = heavy_tailed(8, 96)
    ours = quantize(matrix, TensorType.BF16, method="plain").data
    theirs = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.BF16)
    np.testing.assert_array_equal(ours, theirs.view(np.uint8).reshape(-1))


@pytest.mark.parametrize(("tensor_type", "method"), EVERY)
def test_reported_error_is_that_of_the_bytes(tensor_type, method):
    matrix = heavy_tailed(24, 768)
    encoded = quantize(matrix, tensor_type, method=method)
    difference = matrix.astype(np.float64) - decoded(encoded, tensor_type, matrix.shape)
    assert encoded.error == pytest.approx(np.square(difference).sum(), rel=1e-9, abs=1e-12)
    assert encoded.energy == pytest.approx(np.square(matrix.astype(np.float64)).sum(), rel=1e-9)
    assert (
        encoded.data.nbytes
        == 24 * 768 // type_info(tensor_type).block_size * type_info(tensor_type).block_bytes
    )


@pytest.mark.parametrize(("tensor_type", "method"), EVERY)
def test_bytes_do_not_depend_on_threads(tensor_type, method):
    matrix = heavy_tailed(37, 512)
    one = quantize(matrix, tensor_type, method=method, threads=1)
    three = quantize(matrix, tensor_type, method=method, threads=3)
    np.testing.assert_array_equal(one.data, three.data)
    assert (one.error, one.energy) == (three.error, three.energy)


# Relative squared errors on Student-t (5 degrees of freedom) weights, rounded up by a tenth of what was
# measured: an encoder that loses a step of its search fails here.
@pytest.mark.parametrize(
    ("tensor_type", "method", "most"),
    [
        (TensorType.Q4_0, "mse", 0.0125),
        (TensorType.Q4_K, "mse", 0.0082),
        (TensorType.Q6_K, "mse", 0.0006),
        (TensorType.Q2_0, "mse", 0.21),
        (TensorType.TQ2_0, "ternary", 0.36),
    ],
)
def test_fits_reach_their_error(tensor_type, method, most):
    encoded = quantize(heavy_tailed(256, 1024), tensor_type, method=method)
    assert encoded.relative_error < most


def test_the_fitted_q4_0_loses_less_than_the_reference_rule():
    matrix = heavy_tailed(256, 1024)
    fitted = quantize(matrix, TensorType.Q4_0, method="mse").relative_error
    plain = quantize(matrix, TensorType.Q4_0, method="plain").relative_error
    assert fitted < 0.97 * plain


def weighted_error(matrix, values):
    """What the encoders minimise: error x sqrt(mean square of the row + value^2)."""
    weights = np.sqrt(np.square(matrix).mean(axis=1, keepdims=True) + np.square(matrix))
    return float((weights * np.square(matrix - values)).sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_q2_0_is_near_the_brute_force_optimum(seed):
    matrix = heavy_tailed(1, 64, seed).astype(np.float64)
    encoded = quantize(matrix.astype(np.float32), TensorType.Q2_0, method="mse")
    ours = weighted_error(matrix, decoded(encoded, TensorType.Q2_0, matrix.shape))
    top = np.abs(matrix).max()
    best = min(
        weighted_error(matrix, scale * np.clip(np.rint(matrix / scale), -1, 2))
        for scale in np.concatenate([np.linspace(0.02, 1.1, 2000) * top, -np.linspace(0.02, 1.1, 2000) * top])
    )
    assert ours <= 1.02 * best


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        (2, 256),
        elements=st.one_of(
            st.floats(-1e4, 1e4, width=32), st.sampled_from([0.0, -0.0, 1e-38, 1e-45, 6e4, -6e4, 1e-7])
        ),
    ),
    st.sampled_from(EVERY),
)
def test_any_finite_block_decodes_to_finite_values_no_worse_than_zero(matrix, case):
    tensor_type, method = case
    values = decoded(quantize(matrix, tensor_type, method=method), tensor_type, matrix.shape)
    assert np.isfinite(values).all()
    if method in ("mse", "ternary"):
        # Sub-scales are rounded after they are fitted, and float16 scales vanish below 6e-8.
        assert weighted_error(matrix, values) <= 1.05 * weighted_error(matrix, 0 * matrix) + 1e-6


@pytest.mark.parametrize(("tensor_type", "method"), EVERY)
def test_values_whose_squares_vanish_are_zeros(tensor_type, method):
    matrix = np.zeros((1, 256), np.float32)
    matrix[0, ::16] = 2.5e-28
    values = decoded(quantize(matrix, tensor_type, method=method), tensor_type, matrix.shape)
    assert np.abs(values).max() < 1e-7


@pytest.mark.parametrize(("tensor_type", "method"), EVERY)
def test_zeros_stay_zeros(tensor_type, method):
    matrix = np.zeros((4, 256), np.float32)
    np.testing.assert_array_equal(
        decoded(quantize(matrix, tensor_type, method=method), tensor_type, (4, 256)), matrix
    )


def test_one_outlier_does_not_take_the_other_sub_blocks_with_it():
    matrix = heavy_tailed(1, 256)
    matrix[0, 7] = 3.0
    values = decoded(quantize(matrix, TensorType.Q6_K, method="mse"), TensorType.Q6_K, (1, 256))
    assert values[0, 7] == pytest.approx(3.0, rel=0.05)
    rest = np.square(matrix[0, 16:] - values[0, 16:]).sum() / np.square(matrix[0, 16:]).sum()
    assert rest < 0.05


def test_absmean_is_bitnets_rule():
    matrix = heavy_tailed(32, 256)
    values = decoded(quantize(matrix, TensorType.TQ2_0, method="absmean"), TensorType.TQ2_0, (32, 256))
    scale = np.abs(matrix.astype(np.float64)).mean()
    expected = np.clip(np.rint(matrix / np.float32(scale)), -1, 1) * np.float32(np.float16(scale))
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("tensor_type", [TensorType.TQ2_0, TensorType.Q2_0])
def test_a_ternary_model_survives_both_ways_unchanged(tensor_type):
    rng = np.random.default_rng(0)
    matrix = (rng.integers(-1, 2, (64, 512)) * np.float32(0.125)).astype(np.float32)
    fitted = decoded(quantize(matrix, tensor_type, method="ternary"), tensor_type, matrix.shape)
    np.testing.assert_array_equal(fitted, matrix)


def test_importance_moves_the_error_to_unimportant_columns():
    matrix = heavy_tailed(128, 256)
    importance = np.ones(256, np.float32)
    importance[::2] = 1000

    def errors(statistics):
        encoded = quantize(matrix, TensorType.Q2_0, method="mse", statistics=statistics)
        difference = np.square(matrix - decoded(encoded, TensorType.Q2_0, matrix.shape))
        return difference[:, ::2].sum(), difference[:, 1::2].sum()

    plain, weighted = errors(None), errors(Statistics(importance))
    assert weighted[0] < 0.97 * plain[0]
    assert weighted[1] > plain[1]


def test_rows_that_do_not_fit_are_refused_with_the_block_size():
    with pytest.raises(UsageError, match="rows of 96 values do not fit Q4_K blocks of 256"):
        quantize(heavy_tailed(2, 96), TensorType.Q4_K, method="mse")


def test_a_type_without_an_encoder_is_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="Q5_1"):
        quantize(heavy_tailed(2, 256), TensorType.Q5_1, method="mse")


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"'best' is not known") as caught:
        quantize(heavy_tailed(2, 256), TensorType.Q4_K, method="best")
    assert "mse" in caught.value.hint


@pytest.mark.parametrize(("tensor_type", "method"), EVERY)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_makes_the_energy_none(tensor_type, method, value):
    matrix = heavy_tailed(20, 256)
    matrix[11, 200] = value
    assert not np.isfinite(quantize(matrix, tensor_type, method=method).energy)


@pytest.mark.parametrize(
    ("tensor_type", "method", "largest"),
    [
        (TensorType.F16, "plain", 65504.0),
        (TensorType.Q8_0, "plain", 65504.0 * 127),
        (TensorType.Q4_0, "plain", 65504.0 * 8),
        (TensorType.Q4_0, "mse", 65504.0 * 7),
        (TensorType.Q6_K, "mse", 65504.0 * 31),
        (TensorType.Q2_0, "mse", 65504.0),
        (TensorType.TQ2_0, "ternary", 65504.0),
    ],
)
def test_values_beyond_a_type_s_range_make_the_error_infinite(tensor_type, method, largest):
    matrix = np.zeros((2, 256), np.float32)
    matrix[1, 3] = largest
    fits = quantize(matrix, tensor_type, method=method)
    assert fits.relative_error < 1e-3
    matrix[1, 3] = 3e9
    assert np.isfinite(quantize(matrix, tensor_type, method=method).energy)
    assert not np.isfinite(quantize(matrix, tensor_type, method=method).error)


@pytest.mark.parametrize("tensor_type", [TensorType.TQ2_0, TensorType.Q2_0])
def test_absmean_keeps_the_scale_of_a_matrix_that_has_three_levels_already(tensor_type):
    matrix = (np.random.default_rng(3).integers(-1, 2, (64, 512)) * np.float32(0.125)).astype(np.float32)
    encoded = quantize(matrix, tensor_type, method="absmean")
    np.testing.assert_array_equal(decoded(encoded, tensor_type, matrix.shape), matrix)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(TensorType.Q2_0, 64), (TensorType.TQ2_0, 256)]))
def test_ternary_is_the_optimum(seed, case):
    tensor_type, size = case
    matrix = heavy_tailed(1, size, seed).astype(np.float64)
    encoded = quantize(matrix.astype(np.float32), tensor_type, method="ternary")
    ours = weighted_error(matrix, decoded(encoded, tensor_type, matrix.shape))
    weights = np.sqrt(np.square(matrix).mean() + np.square(matrix))
    best = np.inf
    for kept in range(1, size + 1):  # the largest so many take code 1 or -1: every optimum is one of these
        codes = np.zeros_like(matrix)
        chosen = np.argsort(-np.abs(matrix[0]))[:kept]
        codes[0, chosen] = np.sign(matrix[0, chosen])
        scale = (weights * matrix * codes).sum() / (weights * codes * codes).sum()
        best = min(best, weighted_error(matrix, scale * codes))
    assert ours <= best * (1 + 1e-5)  # the scale is rounded to float16


def test_only_ratios_of_importances_matter():
    matrix = heavy_tailed(32, 256)
    importance = np.random.default_rng(1).uniform(0.1, 9, 256).astype(np.float32)
    for tensor_type, method in FITTED:
        one, other, huge = (
            quantize(matrix, tensor_type, method=method, statistics=Statistics(importance * np.float32(f)))
            for f in (1, 2.0**-40, 2.0**100)
        )
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.data, huge.data)


def test_columns_without_importance_do_not_vanish():
    matrix = heavy_tailed(4, 512)
    importance = np.zeros(512, np.float32)
    importance[256:] = 1
    for tensor_type, method in FITTED:
        encoded = quantize(matrix, tensor_type, method=method, statistics=Statistics(importance))
        values = decoded(encoded, tensor_type, matrix.shape)[:, :256]
        assert np.square(values - matrix[:, :256]).sum() < 0.6 * np.square(matrix[:, :256]).sum()


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.full(256, -1, np.float32), "finite values of 0 or more"),
        (np.full(256, np.nan, np.float32), "finite values of 0 or more"),
        (np.full(256, np.inf, np.float32), "finite values of 0 or more"),
        (np.ones(128, np.float32), "128 importances for rows of 256 values"),
    ],
)
def test_impossible_importances_are_refused(importance, message):
    with pytest.raises(UsageError, match=message):
        quantize(heavy_tailed(2, 256), TensorType.Q4_K, method="mse", statistics=Statistics(importance))


# What llama.cpp's own encoders lose on the same values, without an importance matrix.
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q2_0", "TQ2_0"])
def test_fits_lose_no_more_than_llama_cpp_s(name):
    llama_cpp = pytest.importorskip("llama_cpp")
    library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so"))
    encode = ctypes.CDLL(str(library)).ggml_quantize_chunk
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    encode.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    encode.restype = ctypes.c_size_t
    tensor_type = TensorType[name]
    matrix = heavy_tailed(64, 1024)
    info = type_info(tensor_type)
    theirs = np.zeros(matrix.size // info.block_size * info.block_bytes, np.uint8)
    encode(int(tensor_type), matrix.ctypes.data, theirs.ctypes.data, 0, *matrix.shape, None)
    lost = np.square(matrix - _native.dequantize(int(tensor_type), theirs, *matrix.shape)).sum()
    method = "ternary" if name == "TQ2_0" else "mse"
    assert quantize(matrix, tensor_type, method=method).error < float(lost)
