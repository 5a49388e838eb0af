"""The sweeps of ``sweeps`` for vectors from a codebook, chosen pair by pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.gguf import TensorType, codebook_shape

from . import codebooks
from .sweeps import damped, descend_blocks, factored

Matrix = npt.NDArray[np.float32]

_BLOCK = 128  # columns that share a scale
_FEEDBACK_PAIRS = 64


@dataclass
class Vectors:
    """A matrix quantised with a codebook, taken apart; a weight is its block's scale times a coordinate.

    Attributes:
        tensor_type: V2, V2_5 or V3.
        codebook: int8 [points, 2].
        codes: uint8 [rows, cols / 2].
        scales: float32 [rows, cols / 128].
    """

    tensor_type: TensorType
    codebook: npt.NDArray[np.int8]
    codes: npt.NDArray[np.uint8]
    scales: Matrix

    @classmethod
    def fit(
        cls,
        matrix: Matrix,
        tensor_type: TensorType,
        *,
        importance: npt.NDArray[np.float32] | None = None,
        threads: int = 0,
    ) -> Vectors:
        """The fit of least weighted squared error; see :mod:`bitqwen.quant.codebooks`."""
        codebook = codebooks.fit(matrix, tensor_type, importance=importance, threads=threads)
        codes, scales = codebooks.assign(
            matrix, tensor_type, codebook, importance=importance, threads=threads
        )
        return cls(tensor_type, codebook, codes, scales)

    def rows(self, part: slice) -> Vectors:
        """Some of its rows, which are changed with these."""
        return Vectors(self.tensor_type, self.codebook, self.codes[part], self.scales[part])

    def in_pairs(self) -> Matrix:
        """What it stands for, its columns pair by pair as :func:`pair_columns` says: float32 [rows, cols]."""
        points = self.codebook.astype(np.float32)
        all_points = np.concatenate([points, -points])  # of codebooks without opposites no code is so high
        rows, pairs = self.codes.shape
        shaped = all_points[self.codes].reshape(rows, -1, _BLOCK) * self.scales[:, :, None]
        return np.ascontiguousarray(shaped.reshape(rows, 2 * pairs))

    def write(self, *, threads: int = 0) -> npt.NDArray[np.uint8]:
        """The file's bytes."""
        return codebooks.pack(self.codes, self.scales, self.tensor_type, threads=threads)


def is_vector_type(tensor_type: TensorType) -> bool:
    """Whether a type's values are vectors from a codebook."""
    return codebook_shape(tensor_type) is not None


def pair_columns(cols: int) -> npt.NDArray[np.int64]:
    """The columns of a row's pairs, pair by pair: int64 [cols]; cols a multiple of 8."""
    units = np.arange(cols, dtype=np.int64).reshape(-1, 2, 4)
    return np.ascontiguousarray(units.transpose(0, 2, 1)).ravel()


def feedback(matrix: Matrix, vectors: Vectors, moments: Matrix, *, damping: float, threads: int = 0) -> None:
    """Chooses all codes anew, each with the errors of those before made up for; scales stay.

    Pairs go in the order of their importance, and a pair's point is that whose two errors cost least once all
    later columns have made up for them.

    Args:
        matrix: the weights, float32 [rows, cols].
        vectors: a fit of it; its codes are replaced.
        moments: H, float32 [cols, cols].
        damping: as for :func:`bitqwen.quant.sweeps.feedback`.
        threads: 0 for one per core.
    """
    rows, cols = matrix.shape
    columns = pair_columns(cols).reshape(-1, 2)
    pairs = np.argsort(-np.diag(moments)[columns].sum(axis=1), kind="stable")
    order, upper, costs = factored(moments, damping, columns[pairs].ravel())
    weights = matrix[:, order]
    error = np.zeros_like(weights)
    for first in range(0, len(pairs), _FEEDBACK_PAIRS):
        some = pairs[first : first + _FEEDBACK_PAIRS]
        begin, end = 2 * first, 2 * (first + len(some))
        block = np.ascontiguousarray(weights[:, begin:end])
        target = block + error[:, :begin] @ upper[:begin, begin:end]
        codes = np.empty((rows, len(some)), np.uint8)
        _native.feedback_pairs(
            int(vectors.tensor_type),
            vectors.codebook,
            codes,
            (some // (_BLOCK // 2)).astype(np.int32),
            vectors.scales,
            block,
            np.ascontiguousarray(upper[begin:end, begin:end]),
            np.ascontiguousarray(costs[begin:end]),
            target,
            threads,
        )
        error[:, begin:end] = target
        vectors.codes[:, some] = codes


def descend(
    matrix: Matrix,
    vectors: Vectors,
    moments: Matrix,
    *,
    damping: float,
    rounds: int,
    fit_scales: bool = True,
    threads: int = 0,
) -> None:
    """Coordinate descent: each pair's code, and each block's scale, to the best for all the others.

    tr(E H E') never grows, H damped.

    Args:
        matrix: the weights, float32 [rows, cols].
        vectors: its codes and scales are improved.
        moments: H, float32 [cols, cols].
        damping: as for :func:`feedback`.
        rounds: times that all pairs are gone through.
        fit_scales: whether scales may change.
        threads: 0 for one per core.
    """
    columns = pair_columns(matrix.shape[1])

    def sweep(begin: int, end: int, block: Matrix, error: Matrix, gradient: Matrix) -> int:
        codes = np.ascontiguousarray(vectors.codes[:, begin // 2 : end // 2])
        changed = _native.descend_pairs(
            int(vectors.tensor_type),
            vectors.codebook,
            codes,
            (np.arange(begin, end, 2) // _BLOCK).astype(np.int32),
            vectors.scales,
            block,
            error,
            gradient,
            fit_scales,
            threads,
        )
        vectors.codes[:, begin // 2 : end // 2] = codes
        return changed

    descend_blocks(
        matrix[:, columns] - vectors.in_pairs(),
        damped(moments, damping)[np.ix_(columns, columns)],
        sweep,
        rounds=rounds,
        enough=matrix.size // 2000,
    )
