"""Dequantised values: the same bits as two implementations that nobody here wrote."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf
from bitqwen import _native
from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType, codebook_shape, type_info

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

MAINLINE = [t for t in TensorType if not codebook_shape(t)]  # ours: tests/quant/test_codebooks.py
# The gguf package knows no Q2_0, and I8 as numpy's.
PACKAGE_TYPES = [t for t in MAINLINE if t not in (TensorType.Q2_0, TensorType.I8)]


def dequantize(tensor_type: TensorType, data: Bytes, threads: int = 1) -> Floats:
    values = data.size // type_info(tensor_type).block_bytes * type_info(tensor_type).block_size
    return _native.dequantize(int(tensor_type), data, 1, values, threads, codebook(tensor_type))[0]


def codebook(tensor_type: TensorType) -> npt.NDArray[np.int8] | None:
    shape = codebook_shape(tensor_type)
    if shape is None:
        return None
    return (np.random.default_rng(0).integers(-16, 16, shape) * 2 + 1).astype(np.int8)


def assert_same_bits(ours: Floats, theirs: Floats) -> None:
    """Every value equal to the last bit, -0 and infinities too; NaN equals NaN."""
    assert ours.shape == theirs.shape
    differ = (ours.view(np.uint32) != theirs.view(np.uint32)) & ~(np.isnan(ours) & np.isnan(theirs))
    assert not differ.any(), f"{differ.sum()} differ, first {ours[differ][:3]} {theirs[differ][:3]}"


def random_blocks(tensor_type: TensorType, blocks: int = 4096) -> Bytes:
    rng = np.random.default_rng(int(tensor_type))
    return rng.integers(0, 256, blocks * type_info(tensor_type).block_bytes, dtype=np.uint8)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("tensor_type", PACKAGE_TYPES, ids=lambda t: t.name)
def test_equals_the_gguf_package(tensor_type: TensorType) -> None:
    data = random_blocks(tensor_type)
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(int(tensor_type)))
    assert_same_bits(dequantize(tensor_type, data), theirs.reshape(-1))


class _Traits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("block_size_interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
    )


@pytest.fixture(scope="module")
def ggml_dequantize() -> Callable[[TensorType, Bytes], Floats]:
    """llama.cpp's own C functions, from the library that llama-cpp-python brings."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("llama-cpp-python is not installed")
    libraries = sorted((Path(spec.origin).parent / "lib").glob("libggml-base.*"))
    library = ctypes.CDLL(str(libraries[0]))
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)

    def run(tensor_type: TensorType, data: Bytes) -> Floats:
        traits = library.ggml_get_type_traits(int(tensor_type)).contents
        if not traits.to_float:
            pytest.skip(f"this build of ggml has no {tensor_type.name}")
        assert traits.type_name.decode().upper() == tensor_type.name
        info = type_info(tensor_type)
        assert (traits.block_size, traits.block_bytes) == (info.block_size, info.block_bytes)
        out = np.empty(data.size // info.block_bytes * info.block_size, np.float32)
        function(traits.to_float)(data.ctypes.data, out.ctypes.data, out.size)
        return out

    return run


@pytest.mark.parametrize("tensor_type", [t for t in MAINLINE if t != TensorType.F32], ids=lambda t: t.name)
def test_equals_llama_cpp(
    tensor_type: TensorType, ggml_dequantize: Callable[[TensorType, Bytes], Floats]
) -> None:
    data = random_blocks(tensor_type)
    assert_same_bits(dequantize(tensor_type, data), ggml_dequantize(tensor_type, data))


@settings(deadline=None)
@given(
    scale=st.floats(width=16, allow_nan=False),
    codes=st.lists(st.integers(0, 3), min_size=64, max_size=64),
)
def test_q2_0_is_code_minus_one_times_scale(scale: float, codes: list[int]) -> None:
    packed = [sum(code << 2 * i for i, code in enumerate(codes[at : at + 4])) for at in range(0, 64, 4)]
    data = np.frombuffer(np.float16(scale).tobytes() + bytes(packed), np.uint8)
    with np.errstate(invalid="ignore"):
        expected = (np.array(codes, np.float32) - 1) * np.float32(scale)
    assert_same_bits(dequantize(TensorType.Q2_0, data), expected)


@settings(max_examples=20, deadline=None)
@given(
    tensor_type=st.sampled_from(TensorType),
    rows=st.integers(1, 40),
    row_blocks=st.integers(1, 5),
    threads=st.integers(1, 4),
)
def test_threads_do_not_change_the_values(
    tensor_type: TensorType, rows: int, row_blocks: int, threads: int
) -> None:
    data = random_blocks(tensor_type, rows * row_blocks)
    cols = row_blocks * type_info(tensor_type).block_size
    values = _native.dequantize(int(tensor_type), data, rows, cols, threads, codebook(tensor_type))
    assert values.shape == (rows, cols)
    assert_same_bits(values.reshape(-1), dequantize(tensor_type, data))


def test_i8_is_numpy_s() -> None:
    data = random_blocks(TensorType.I8)
    assert_same_bits(dequantize(TensorType.I8, data), data.view(np.int8).astype(np.float32))


def test_many_rows_over_several_threads() -> None:
    data = random_blocks(TensorType.Q4_K, 3000 * 4)
    values = _native.dequantize(int(TensorType.Q4_K), data, 3000, 1024, 3)
    assert_same_bits(values.reshape(-1), dequantize(TensorType.Q4_K, data))


@pytest.mark.parametrize(
    ("rows", "cols"),
    [
        (2, 32),
        (1, 16),
        (1, 0),
        (-1, 32),
        (1, -32),
        (0, 32),
        (2**62, 32),
        (1, 2**62),
        (2**62, 2**62),
        (1, 2**63 - 32),
    ],
)
def test_a_shape_that_does_not_fit_the_bytes_is_refused(rows: int, cols: int) -> None:
    with pytest.raises(UsageError, match="18 bytes are not a Q4_0 matrix"):
        _native.dequantize(int(TensorType.Q4_0), np.zeros(18, np.uint8), rows, cols)


def test_no_rows() -> None:
    assert _native.dequantize(0, np.zeros(0, np.uint8), 0, 8).shape == (0, 8)


def test_an_unread_type_is_refused() -> None:
    with pytest.raises(UsageError, match="tensor type 39"):
        _native.dequantize(39, np.zeros(17, np.uint8), 1, 32)
