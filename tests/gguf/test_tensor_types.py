"""The table of types: one with the native one, and the mainline's."""

from __future__ import annotations

import pytest

import gguf
from bitqwen import _native
from bitqwen.errors import UnsupportedModelError
from bitqwen.gguf import TensorType, ValueType, codebook_shape, tensor_bytes, type_info

OUR_OWN = {TensorType.V2: 2.0, TensorType.V2_5: 2.5, TensorType.V3: 3.0}


def test_python_and_native_code_know_the_same_types() -> None:
    native = {i: _native.type_info(i) for i in (*range(512), *range(20000, 20512))}
    assert {i: info[0] for i, info in native.items() if info} == {int(t): t.name for t in TensorType}


@pytest.mark.parametrize("tensor_type", TensorType, ids=lambda t: t.name)
def test_ids_and_block_sizes_are_the_mainlines(tensor_type: TensorType) -> None:
    info = type_info(tensor_type)
    if tensor_type in OUR_OWN:
        points, dims = codebook_shape(tensor_type) or (0, 0)
        bits = OUR_OWN[tensor_type]
        assert (int(tensor_type), info.block_size, dims) == (20000 + int(100 * bits), 128, 2)
        assert info.block_bytes == 2 + 128 * bits / 8
        assert points == (16 if bits < 3 else 32)
        return
    assert codebook_shape(tensor_type) is None
    if tensor_type == TensorType.Q2_0:  # younger than the gguf package
        assert (int(tensor_type), info.block_size, info.block_bytes) == (42, 64, 2 + 64 // 4)
        return
    mainline = gguf.GGMLQuantizationType[tensor_type.name]
    assert mainline == int(tensor_type)
    assert gguf.GGML_QUANT_SIZES[mainline] == (info.block_size, info.block_bytes)


def test_value_types_are_the_mainlines() -> None:
    assert {t.name: int(t) for t in ValueType} == {t.name: int(t) for t in gguf.GGUFValueType}


def test_every_mainline_type_has_a_name() -> None:
    for mainline in gguf.GGMLQuantizationType:
        assert _native.type_name(int(mainline)) == mainline.name
    assert _native.type_name(9999) == "unknown"


def test_bits_per_weight_count_the_scales() -> None:
    assert type_info(TensorType.Q4_K).bits_per_weight == 4.5
    assert type_info(TensorType.TQ2_0).bits_per_weight == 2.0625
    assert type_info(TensorType.Q2_0).bits_per_weight == 2.25


@pytest.mark.parametrize(
    ("tensor_type", "shape"), [(0, (7,)), (12, (3, 512)), (42, (2, 3, 64)), (34, (256,))]
)
def test_tensor_bytes(tensor_type: int, shape: tuple[int, ...]) -> None:
    info = type_info(tensor_type)
    rows = 1
    for size in shape[:-1]:
        rows *= size
    assert tensor_bytes(tensor_type, shape) == rows * (shape[-1] // info.block_size) * info.block_bytes


def test_rows_must_be_whole_blocks() -> None:
    with pytest.raises(
        UnsupportedModelError, match="rows of 896 values do not fit Q4_K, whose blocks hold 256"
    ):
        tensor_bytes(TensorType.Q4_K, (4, 896))


def test_an_unread_type_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"MXFP4 \(39\)") as error:
        type_info(39)
    assert "Q4_K" in error.value.hint
