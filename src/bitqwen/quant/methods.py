"""Methods: how a matrix becomes a tensor type's bytes. The seam between pipelines and quantisers.

A method is a function of a matrix, a tensor type and what is known of the matrix's inputs. To add one,
register it in ``METHODS``; schemes name methods, and nothing else knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType

from . import codebooks

Matrix = npt.NDArray[np.float32]


class Encoded(NamedTuple):
    """A quantised matrix: its bytes in the file, its codebook (of types that have one), and what was lost.

    ``error`` and ``energy`` are the sums of squared differences and of squares. ``energy`` is not finite if
    a value is not; ``error`` is not finite if the type cannot hold a value.
    """

    data: npt.NDArray[np.uint8]
    error: float
    energy: float
    codebook: npt.NDArray[np.int8] | None = None

    @property
    def relative_error(self) -> float:
        """Squared error as a share of the matrix's energy."""
        return self.error / self.energy if self.energy else 0.0


@dataclass(frozen=True)
class Statistics:
    """What calibration knows of a matrix's inputs.

    Attributes:
        importance: float32 [cols], the mean square of each input, or anything else that says how much the
            error of a column weighs; only ratios matter.
        moments: float32 [cols, cols], the mean of x x' over the inputs x, for recipes that use it.
        samples: how many inputs that is the mean of.
    """

    importance: npt.NDArray[np.float32]
    moments: npt.NDArray[np.float32] | None = None
    samples: int = 0


# (matrix float32 [rows, cols], the type to write, what calibration knows, threads or 0) -> encoded.
Method = Callable[[Matrix, TensorType, Statistics | None, int], Encoded]


def _fit(
    name: Literal["plain", "mse", "ternary", "absmean"],
    matrix: Matrix,
    tensor_type: TensorType,
    statistics: Statistics | None,
    threads: int,
) -> Encoded:
    importance = None
    if statistics is not None:
        importance = np.ascontiguousarray(statistics.importance, np.float32)
    return Encoded(*_native.quantize(int(tensor_type), name, matrix, importance, threads))


def _lloyd(matrix: Matrix, tensor_type: TensorType, statistics: Statistics | None, threads: int) -> Encoded:
    importance = None
    if statistics is not None:
        importance = np.ascontiguousarray(statistics.importance, np.float32)
    codebook = codebooks.fit(matrix, tensor_type, importance=importance, threads=threads)
    codes, scales = codebooks.assign(matrix, tensor_type, codebook, importance=importance, threads=threads)
    data = codebooks.pack(codes, scales, tensor_type, threads=threads)
    return Encoded(data, *codebooks.error(data, matrix, tensor_type, codebook, threads=threads), codebook)


METHODS: dict[str, Method] = {
    "plain": partial(_fit, "plain"),  # the type's reference rule
    "mse": partial(_fit, "mse"),  # scales of least weighted squared error
    "ternary": partial(_fit, "ternary"),  # the same with the codes -1, 0 and 1
    "absmean": partial(_fit, "absmean"),  # one scale a matrix, as BitNet b1.58 rounds
    "lloyd": _lloyd,  # vectors from a codebook of least weighted squared error
}


def quantize(
    matrix: Matrix,
    tensor_type: TensorType,
    *,
    method: str,
    statistics: Statistics | None = None,
    threads: int = 0,
) -> Encoded:
    """Encodes a matrix, on all cores and without the GIL; the same bytes on every machine.

    Args:
        matrix: float32 [rows, cols], or [cols] for a single row.
        tensor_type: the type to write.
        method: a name in ``METHODS``.
        statistics: for methods that can use them; "plain" and "absmean" do not.
        threads: 0 for one per core.

    Raises:
        UnsupportedModelError: the method does not write this type.
        UsageError: an unknown method; rows that do not fit the type's blocks or the statistics.
    """
    if method not in METHODS:
        raise UsageError(f"method {method!r} is not known", hint="Allowed: " + ", ".join(METHODS) + ".")
    rows = np.ascontiguousarray(matrix, np.float32).reshape(-1, matrix.shape[-1])
    return METHODS[method](rows, tensor_type, statistics, threads)
