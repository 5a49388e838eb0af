"""Vector quantisation: codebooks, codes and scales of a matrix, for the types V2, V2_5 and V3.

Three steps, each of use alone, so that other quantisers can choose the codes of a given codebook, or the
codebook, by rules of their own. Vectors are pairs of weights: pair ``4 * g + j`` of a row is its columns
``8 * g + j`` and ``8 * g + 4 + j``. A weight is its block's scale times its point's coordinate.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.gguf import TensorType

Matrix = npt.NDArray[np.float32]
Codebook = npt.NDArray[np.int8]
Importance = npt.NDArray[np.float32]


def fit(
    matrix: Matrix,
    tensor_type: TensorType,
    *,
    importance: Importance | None = None,
    seed: int = 0,
    threads: int = 0,
) -> Codebook:
    """The codebook of least weighted squared error that Lloyd's algorithm finds.

    Args:
        matrix: float32 [rows, cols]; cols a multiple of 128.
        tensor_type: V2, V2_5 or V3.
        importance: float32 [cols], how much the error of a column weighs; only ratios matter.
        seed: chooses the blocks that are looked at, in large matrices.
        threads: 0 for one per core.

    Returns:
        int8 [points, 2]. Of V2_5 and V3 (odd, from -63 to 63) one of each two opposite points; V2 has numbers
        from -32 to 31.

    Raises:
        UnsupportedModelError: a type without a codebook.
        UsageError: sizes that do not fit; an importance that is negative or not finite.
    """
    return _native.fit_codebook(int(tensor_type), matrix, importance, seed, threads)


def assign(
    matrix: Matrix,
    tensor_type: TensorType,
    codebook: Codebook,
    *,
    importance: Importance | None = None,
    threads: int = 0,
) -> tuple[npt.NDArray[np.uint8], Matrix]:
    """Codes uint8 [rows, cols / 2] and scales float32 [rows, cols / 128] of least weighted squared error.

    Codes from the number of points on mean the opposite points. Arguments and errors: see :func:`fit`;
    ModelFileError for a codebook that the type cannot have.
    """
    return _native.assign_codes(int(tensor_type), codebook, matrix, importance, threads)


def pack(
    codes: npt.NDArray[np.uint8], scales: Matrix, tensor_type: TensorType, *, threads: int = 0
) -> npt.NDArray[np.uint8]:
    """The file's bytes for codes and scales as :func:`assign` gives them; scales are rounded to float16.

    Raises:
        UsageError: a code is out of range, or the shapes do not fit each other.
    """
    return _native.pack_codes(int(tensor_type), codes, scales, threads)


def error(
    data: npt.NDArray[np.uint8],
    matrix: Matrix,
    tensor_type: TensorType,
    codebook: Codebook,
    *,
    threads: int = 0,
) -> tuple[float, float]:
    """Sums of squared differences and of squares of a matrix and its bytes."""
    return _native.codebook_error(int(tensor_type), codebook, data, matrix, threads)
