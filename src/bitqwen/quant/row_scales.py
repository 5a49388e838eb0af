"""Rows of a quantised matrix made larger or smaller as they are: in the scales of their blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen.errors import UnsupportedModelError
from bitqwen.gguf import TensorType, type_info


class _Scales(NamedTuple):
    first: int  # byte of a block
    numbers: int = 1  # one after the other, float16: scale, minimum


# The float16 numbers of a block that all its weights are proportional to.
_SCALES = {
    TensorType.Q4_0: _Scales(0),
    TensorType.Q4_1: _Scales(0, 2),
    TensorType.Q5_0: _Scales(0),
    TensorType.Q5_1: _Scales(0, 2),
    TensorType.Q8_0: _Scales(0),
    TensorType.Q2_K: _Scales(80, 2),
    TensorType.Q3_K: _Scales(108),
    TensorType.Q4_K: _Scales(0, 2),
    TensorType.Q5_K: _Scales(0, 2),
    TensorType.Q6_K: _Scales(208),
    TensorType.TQ1_0: _Scales(52),
    TensorType.TQ2_0: _Scales(64),
    TensorType.Q2_0: _Scales(0),
    TensorType.V2: _Scales(0),
    TensorType.V2_5: _Scales(0),
    TensorType.V3: _Scales(0),
}


def has_scales(tensor_type: int) -> bool:
    """Whether blocks of a type have scales."""
    return tensor_type in _SCALES


def scale_rows(
    data: npt.NDArray[np.uint8], tensor_type: TensorType, factors: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """A matrix whose rows are multiplied; scales round to float16, and codes stay what they are.

    Args:
        data: uint8, the matrix in its type.
        tensor_type: the type.
        factors: float32 [rows].

    Returns:
        uint8 of the same length.

    Raises:
        UnsupportedModelError: the type's blocks have no scales.
    """
    found = _SCALES.get(tensor_type)
    if found is None:
        raise UnsupportedModelError(f"{tensor_type.name} has no scales that rows could be multiplied by")
    out = np.array(data, np.uint8).reshape(len(factors), -1, type_info(tensor_type).block_bytes)
    part = slice(found.first, found.first + 2 * found.numbers)
    scales = np.ascontiguousarray(out[..., part]).view("<f2").astype(np.float32)
    scaled = (scales * factors[:, None, None]).astype("<f2")
    out[..., part] = scaled.view(np.uint8)
    return out.reshape(-1)
