"""The seam between pipelines and quantisers: a matrix and statistics in, a tensor type's bytes out."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.gguf import TensorType

Fit = Literal["plain", "mse", "ternary", "absmean"]


class Encoded(NamedTuple):
    """A quantised matrix: its bytes in the file, and what was lost.

    ``error`` and ``energy`` are the sums of squared differences and of squares.
    """

    data: npt.NDArray[np.uint8]
    error: float
    energy: float

    @property
    def relative_error(self) -> float:
        """Squared error as a share of the matrix's energy."""
        return self.error / self.energy if self.energy else 0.0


def quantize(
    matrix: npt.NDArray[np.float32],
    tensor_type: TensorType,
    *,
    fit: Fit,
    importance: npt.NDArray[np.float32] | None = None,
    threads: int = 0,
) -> Encoded:
    """Encodes a matrix, on all cores and without the GIL; the same bytes on every machine.

    Args:
        matrix: float32 [rows, cols], or [cols] for a single row.
        tensor_type: the type to write.
        fit: "plain" (the type's reference rule), "mse" (scales of least weighted squared error),
            "ternary" (the same with codes -1, 0, 1), "absmean" (one scale a matrix, BitNet b1.58).
        importance: [cols], how much the error of each column weighs.
        threads: 0 for one per core.

    Raises:
        UnsupportedModelError: there is no encoder for this type and fit.
        UsageError: the rows do not fit the type's blocks.
    """
    rows = np.ascontiguousarray(matrix, np.float32).reshape(-1, matrix.shape[-1])
    return Encoded(*_native.quantize(int(tensor_type), fit, rows, importance, threads))
