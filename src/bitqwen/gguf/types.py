"""Types of tensors and of metadata values: ids are the mainline's; layouts come from the native table.

V2, V2_5 and V3 are bitqwen's own: docs/file-format.md.
"""

from __future__ import annotations

import math
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from bitqwen import _native
from bitqwen.errors import UnsupportedModelError


class TensorType(IntEnum):
    """The tensor types that bitqwen reads."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    Q2_0 = 42
    I8 = 24  # codebooks, and signs of rotated columns
    V2 = 20200
    V2_5 = 20250
    V3 = 20300


# Types whose values are not quantised.
FLOAT_TYPES = frozenset({TensorType.F32, TensorType.F16, TensorType.BF16})


class ValueType(IntEnum):
    """The types of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


class TypeInfo(NamedTuple):
    """How a type lays out a row: blocks of ``block_size`` values in ``block_bytes`` bytes."""

    name: str
    block_size: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits that one value takes, scales included."""
        return 8 * self.block_bytes / self.block_size


@cache
def type_info(tensor_type: int) -> TypeInfo:
    """The layout of a type.

    Raises:
        UnsupportedModelError: the id is not one that bitqwen reads.
    """
    info = _native.type_info(int(tensor_type))
    if info is None:
        raise UnsupportedModelError(
            f"tensor type {_native.type_name(int(tensor_type))} ({int(tensor_type)}) is not supported",
            hint="Supported: " + ", ".join(t.name for t in TensorType) + ".",
        )
    return TypeInfo(*info)


def tensor_bytes(tensor_type: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of that type; ``shape`` in numpy's order, the last one the row's length.

    Raises:
        UnsupportedModelError: the row's length is not a multiple of the type's block.
    """
    info = type_info(tensor_type)
    if shape[-1] % info.block_size:
        raise UnsupportedModelError(
            f"rows of {shape[-1]} values do not fit {info.name}, whose blocks hold {info.block_size}"
        )
    return math.prod(shape) // info.block_size * info.block_bytes


@cache
def codebook_shape(tensor_type: int) -> tuple[int, int] | None:
    """The shape, points by weights of a vector, of the codebook that a tensor of that type comes with.

    ``None`` for types whose values need no codebook.
    """
    return _native.codebook_shape(int(tensor_type))


def codebook_name(tensor: str) -> str:
    """The name of the I8 tensor that holds another tensor's codebook."""
    return _native.codebook_name(tensor)
