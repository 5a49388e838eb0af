"""Tile sizes in bitnet.cpp's terms, what they must satisfy, and good ones for a shape.

BM is the rows of a tile, BK the columns of a block of tables, bm the rows of one look-up vector. A block's
tables (BK * 11 bytes of triples, BK * 16 of pairs) stay near while BM rows use them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bitqwen.errors import UsageError

from .shapes import MatrixShape
from .targets import Target

# The largest tile: its sums are 1 kB.
_ROWS = (256, 128, 64, 32)
_BLOCKS = 16  # weight scales of a block: 45 kB of tables
_LONG, _SHORT = 256, 64


@dataclass(frozen=True)
class Tile:
    """``rows`` is BM, ``cols`` is BK, ``lanes`` is bm (``bmm`` in kernel_config.ini)."""

    rows: int
    cols: int
    lanes: int


def scale_columns(cols: int) -> tuple[int, int]:
    """Columns of an activation scale and of a weight scale, for a ternary matrix of so many columns.

    It is stored as TQ2_0 (128 and 256) where that type's blocks divide a row, else as Q2_0 (64 and 64).
    """
    return (128, _LONG) if cols % _LONG == 0 else (_SHORT, _SHORT)


def choose(
    shape: MatrixShape,
    target: Target,
    *,
    rows: int | None = None,
    cols: int | None = None,
    lanes: int | None = None,
) -> Tile:
    """The tile for a shape: what is given as given, the rest as large as fits.

    Raises:
        UsageError: names the constraint that cannot be met.
    """
    bm = lanes if lanes is not None else _first(target.lanes, lambda n: shape.rows % n == 0)
    if rows is None:
        rows = _first(_ROWS, lambda n: shape.rows % n == 0 and n % bm == 0)
    if cols is None:
        unit = scale_columns(shape.cols)[1]
        most = _BLOCKS * _LONG // unit
        cols = unit * max((n for n in range(1, most + 1) if shape.cols % (unit * n) == 0), default=1)
    tile = Tile(rows, cols, bm)
    for holds, constraint in _constraints(shape, target, tile):
        if not holds:
            raise UsageError(
                f"{target.family} for {shape.rows} x {shape.cols}: BM = {tile.rows}, BK = {tile.cols}, "
                f"bm = {tile.lanes} cannot be: {constraint}",
                hint="Leave --bm, --bk and --bmm out for sizes that fit, if there are any.",
            )
    return tile


def _first(choices: tuple[int, ...], fits: Callable[[int], bool]) -> int:
    """The first that fits; the last one otherwise, whose constraint is then named."""
    return next((choice for choice in choices if fits(choice)), choices[-1])


def _constraints(shape: MatrixShape, target: Target, tile: Tile) -> list[tuple[bool, str]]:
    """Each constraint: whether it holds, and its text."""
    m, k = shape.rows, shape.cols
    bm_rows, bk, bm = tile.rows, tile.cols, tile.lanes
    if min(bm_rows, bk, bm) < 1:
        return [(False, "tile sizes are positive")]
    allowed = " or ".join(str(n) for n in sorted(target.lanes))
    unit = scale_columns(k)[1]
    return [
        (bm in target.lanes, f"bm must be {allowed} here"),
        (bm_rows % bm == 0, f"BM must be a multiple of bm, {bm_rows} % {bm} is {bm_rows % bm}"),
        (m % bm_rows == 0, f"M must be a multiple of BM, {m} % {bm_rows} is {m % bm_rows}"),
        (bm_rows <= 4096, "BM may be 4096 at most"),
        (
            k % unit == 0,
            f"K must be a multiple of {unit}, the columns of a scale, {k} % {unit} is {k % unit}",
        ),
        (
            bk % unit == 0,
            f"BK must be a multiple of {unit}, the columns of a scale, {bk} % {unit} is {bk % unit}",
        ),
        (k % bk == 0, f"K must be a multiple of BK, {k} % {bk} is {k % bk}"),
    ]
