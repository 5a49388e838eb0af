"""A quantised matrix taken apart: steps, offsets and codes, whatever its tensor type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.errors import UnsupportedModelError
from bitqwen.gguf import TensorType

Matrix = npt.NDArray[np.float32]


def is_grid(tensor_type: TensorType) -> bool:
    """Whether a type's values are steps times codes, so that sweeps can choose its codes."""
    return _native.grid_shape(int(tensor_type)) is not None


@dataclass
class Grid:
    """``value = step * code - offset``, with a step and an offset for each group of weights in a row.

    Attributes:
        tensor_type: the type it is of.
        group: weights of a group.
        low: lowest code.
        high: highest code.
        steps: float32 [rows, cols / group].
        offsets: float32 [rows, cols / group].
        units: float32 [rows, cols / group]; what steps are multiples of, or zero where they are free.
        codes: int8 [rows, cols].
        data: the bytes it was read from, which keep what sweeps do not change.
    """

    tensor_type: TensorType
    group: int
    low: int
    high: int
    steps: Matrix
    offsets: Matrix
    units: Matrix
    codes: npt.NDArray[np.int8]
    data: npt.NDArray[np.uint8]

    @classmethod
    def read(cls, tensor_type: TensorType, data: npt.NDArray[np.uint8], rows: int, cols: int) -> Grid:
        """Takes a matrix's bytes apart.

        Raises:
            UnsupportedModelError: the type is no grid.
            UsageError: the bytes are not a matrix of that shape.
        """
        shape = _native.grid_shape(int(tensor_type))
        if shape is None:
            raise UnsupportedModelError(f"{tensor_type.name} is no grid of steps and codes")
        steps, offsets, units, codes = _native.read_grid(int(tensor_type), data, rows, cols)
        return cls(tensor_type, *shape, steps, offsets, units, codes, data)

    def values(self) -> Matrix:
        """What it stands for: float32 [rows, cols]."""
        out = self.codes.astype(np.float32)
        shaped = out.reshape(out.shape[0], -1, self.group)
        shaped *= self.steps[:, :, None]
        shaped -= self.offsets[:, :, None]
        return out

    def write(self) -> npt.NDArray[np.uint8]:
        """The matrix's bytes, with the steps and codes as they are now."""
        data: npt.NDArray[np.uint8] = self.data.copy()
        _native.write_grid(int(self.tensor_type), self.steps, self.codes, data)
        return data
