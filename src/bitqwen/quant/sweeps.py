"""Choosing codes by what they do to a matrix's outputs, on real inputs.

With H the mean of x x' over a layer's inputs x, the outputs lose tr(E H E') where the weights lose E.
Rounding to the nearest code ignores that errors may cancel each other. Both sweeps here use it: error
feedback rounds one column after another and lets later ones make up for earlier ones; coordinate descent
then goes back to each code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen import _native

from .grid import Grid, Matrix

_FACTOR_COLUMNS = 256
_FEEDBACK_COLUMNS = 128
_DESCENT_COLUMNS = 256  # whole groups of every grid
_MOST_DAMPING = 1.0
_SHRINK_ROWS = 512
# Tokens of one text depend on each other: so many tell as much as one that does not.
_DEPENDENCE = 2.0


# See descend_blocks().
Sweep = Callable[[int, int, Matrix, Matrix, Matrix], int]


class Factor(NamedTuple):
    """H = U D U', its columns in another order.

    Attributes:
        order: which column of H comes where, int64 [cols].
        upper: U, float32 [cols, cols], unit upper triangular.
        diagonal: D, float32 [cols].
    """

    order: npt.NDArray[np.int64]
    upper: Matrix
    diagonal: npt.NDArray[np.float32]


def output_error(error: Matrix, moments: Matrix) -> float:
    """tr(E H E'): the mean squared error of all outputs together.

    Args:
        error: E, float32 [rows, cols].
        moments: H, float32 [cols, cols].
    """
    return float(np.vdot(error, error @ moments))


def shrunk(moments: Matrix, samples: int) -> Matrix:
    """H with its off-diagonal elements as much smaller as chance has made them larger.

    From few inputs columns seem to depend on each other that do not, and sweeps would trade real errors for
    gains that are none. The share taken off is that of least expected squared error of the correlations
    (Schäfer and Strimmer 2005).

    Args:
        moments: H, float32 [cols, cols].
        samples: how many inputs it is the mean of.
    """
    spread = np.sqrt(np.maximum(np.diag(moments), np.float32(1e-30)))
    total = noise = 0.0
    for begin in range(0, len(moments), _SHRINK_ROWS):
        rows = slice(begin, begin + _SHRINK_ROWS)
        squares = np.square(moments[rows] / spread[rows, None] / spread[None, :])
        np.clip(squares, 0.0, 1.0, out=squares)
        squares[np.arange(len(squares)), np.arange(begin, begin + len(squares))] = 0.0
        total += float(squares.sum(dtype=np.float64))
        noise += float(np.square(1.0 - squares).sum(dtype=np.float64)) - len(squares)
    share = min(1.0, _DEPENDENCE * noise / max(samples, 1) / total) if total > 0.0 else 0.0
    out: Matrix = moments * np.float32(1.0 - share)
    out[np.diag_indices_from(out)] = np.diag(moments)
    return out


def damped(moments: Matrix, damping: float) -> Matrix:
    """H with less faith in it: a share taken off all correlations, a third of it of the mean diagonal added.

    The first keeps what each column weighs, however uneven that is; the second gives columns that were hardly
    seen some weight. Together they leave less on texts that were not calibrated on than either alone
    (docs/quantising.md).
    """
    diagonal = np.diag(moments).copy()
    out: Matrix = moments * np.float32(1.0 - damping)
    mean = float(np.mean(diagonal, dtype=np.float64)) or 1.0
    out[np.diag_indices_from(out)] = diagonal + np.float32(damping / 3.0 * mean)
    return out


def factored(moments: Matrix, damping: float, order: npt.NDArray[np.int64]) -> Factor:
    """H = U D U', damped, its columns in an order: errors of the first are made up for by all the others.

    Args:
        moments: H, float32 [cols, cols].
        damping: see :func:`damped`; more, if there is no other way.
        order: of the columns, int64 [cols].
    """
    ordered = moments[np.ix_(order, order)]
    while True:
        upper = damped(ordered, damping)
        try:
            _decompose(upper)
        except np.linalg.LinAlgError:  # float32 was too coarse for so little damping
            if damping >= _MOST_DAMPING:
                raise
            damping = max(1e-6, damping * 4)
            continue
        diagonal = np.diag(upper).copy()
        upper /= diagonal
        return Factor(order, upper, np.square(diagonal))


def _decompose(matrix: Matrix) -> None:
    """Cholesky's method: H becomes the upper triangular R with H = R R'.

    By blocks of columns from the last, so that nearly all of it is products of matrices: less than a third of
    the time of LAPACK's, as numpy calls it.

    Raises:
        numpy.linalg.LinAlgError: H is not positive definite.
    """
    for end in range(len(matrix), 0, -_FACTOR_COLUMNS):
        begin = max(0, end - _FACTOR_COLUMNS)
        panel = matrix[:end, begin:end]
        panel -= matrix[:end, end:] @ matrix[begin:end, end:].T
        # Reversed, the upper triangle is a lower one, which numpy finds.
        corner = np.linalg.cholesky(panel[begin:][::-1, ::-1])[::-1, ::-1]
        panel[:begin] = panel[:begin] @ np.linalg.inv(corner).T
        panel[begin:] = corner
        matrix[end:, begin:end] = 0


def feedback(matrix: Matrix, grid: Grid, moments: Matrix, *, damping: float, threads: int = 0) -> None:
    """Chooses all codes anew, each with the errors of those before made up for (GPTQ, arXiv 2210.17323).

    Columns go in the order of their importance; steps stay.

    Args:
        matrix: the weights, float32 [rows, cols].
        grid: a fit of it; its codes are replaced.
        moments: H, float32 [cols, cols].
        damping: see :func:`damped`; the more, the fewer inputs were seen.
        threads: 0 for one per core.
    """
    order, upper, _ = factored(moments, damping, np.argsort(-np.diag(moments), kind="stable"))
    rows, cols = matrix.shape
    weights = matrix[:, order]
    error = np.zeros_like(weights)
    for begin in range(0, cols, _FEEDBACK_COLUMNS):
        end = min(begin + _FEEDBACK_COLUMNS, cols)
        block = np.ascontiguousarray(weights[:, begin:end])
        target = block + error[:, :begin] @ upper[:begin, begin:end]
        codes = np.empty((rows, end - begin), np.int8)
        columns = order[begin:end]
        _native.feedback_sweep(
            int(grid.tensor_type),
            codes,
            (columns // grid.group).astype(np.int32),
            grid.steps,
            grid.offsets,
            block,
            np.ascontiguousarray(upper[begin:end, begin:end]),
            target,
            threads,
        )
        error[:, begin:end] = target
        grid.codes[:, columns] = codes


def descend(
    matrix: Matrix,
    grid: Grid,
    moments: Matrix,
    *,
    damping: float,
    rounds: int,
    fit_steps: bool = True,
    threads: int = 0,
) -> None:
    """Coordinate descent: each code, and each group's step, to the best for all the others.

    tr(E H E') never grows, H damped.

    Args:
        matrix: the weights, float32 [rows, cols].
        grid: its codes and steps are improved.
        moments: H, float32 [cols, cols].
        damping: as for :func:`feedback`.
        rounds: times that all columns are gone through.
        fit_steps: whether steps may change.
        threads: 0 for one per core.
    """

    def sweep(begin: int, end: int, block: Matrix, error: Matrix, gradient: Matrix) -> int:
        codes = np.ascontiguousarray(grid.codes[:, begin:end])
        changed = _native.descent_sweep(
            int(grid.tensor_type),
            codes,
            (np.arange(begin, end) // grid.group).astype(np.int32),
            grid.steps,
            grid.offsets,
            grid.units,
            block,
            error,
            gradient,
            fit_steps,
            threads,
        )
        grid.codes[:, begin:end] = codes
        return changed

    descend_blocks(
        matrix - grid.values(), damped(moments, damping), sweep, rounds=rounds, enough=matrix.size // 1000
    )


def descend_blocks(error: Matrix, moments: Matrix, sweep: Sweep, *, rounds: int, enough: int) -> None:
    """Rounds of descent over blocks of columns, each with the errors that all others have by then.

    Args:
        error: E, float32 [rows, cols]; is changed.
        moments: H, float32 [cols, cols], damped.
        sweep: given a block's first column and the one after its last, its part of H, its errors and
            their gradient, both of which it changes; says how many codes it has changed.
        rounds: the most.
        enough: changes below which a round was the last.
    """
    cols = error.shape[1]
    for _ in range(rounds):
        changed = 0
        for begin in range(0, cols, _DESCENT_COLUMNS):
            end = min(begin + _DESCENT_COLUMNS, cols)
            part = np.ascontiguousarray(error[:, begin:end])
            gradient: Matrix = error @ moments[:, begin:end]
            changed += sweep(begin, end, np.ascontiguousarray(moments[begin:end, begin:end]), part, gradient)
            error[:, begin:end] = part
        if changed < enough:
            break
