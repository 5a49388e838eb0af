"""Tile sizes in bitnet.cpp's terms, what they must satisfy, and good ones for a shape.

BM is the rows of a tile, BK the columns of a block of tables, bm the rows of one look-up vector. A block's
tables (BK * 32 / 3 bytes of triples, BK * 16 of pairs) stay in the first-level cache while BM rows use them.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitqwen.errors import UsageError

from .shapes import MatrixShape
from .targets import Target

# The largest tile: its int32 sums are 1 kB.
_ROWS = (256, 128, 64, 32)
_TL1_COLUMNS = (256, 128, 64, 32, 16)
_TL2_COLUMNS = (192, 96)


@dataclass(frozen=True)
class Tile:
    """``rows`` is BM, ``cols`` is BK, ``lanes`` is bm (``bmm`` in kernel_config.ini)."""

    rows: int
    cols: int
    lanes: int


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
    if cols is None and target.family == "TL1":
        cols = _first(_TL1_COLUMNS, lambda n: shape.cols % n == 0)
    elif cols is None:
        fitting = [n for n in _TL2_COLUMNS if shape.cols % n % 32 == 0 and n <= shape.cols]
        # Columns beyond the last block cost 2 bits instead of 1.67: the fewer, the better.
        cols = min(fitting, key=lambda n: shape.cols % n, default=_TL2_COLUMNS[-1])
    tile = Tile(rows, cols, bm)
    for holds, constraint in _constraints(shape, target, tile):
        if not holds:
            raise UsageError(
                f"{target.family} for {shape.rows} x {shape.cols}: BM = {tile.rows}, BK = {tile.cols}, "
                f"bm = {tile.lanes} cannot be: {constraint}",
                hint="Leave --bm, --bk and --bmm out for sizes that fit, if there are any.",
            )
    return tile


def _first(choices: tuple[int, ...], fits: object) -> int:
    """The first that fits; the last one otherwise, whose constraint is then named."""
    assert callable(fits)
    return next((choice for choice in choices if fits(choice)), choices[-1])


def _constraints(shape: MatrixShape, target: Target, tile: Tile) -> list[tuple[bool, str]]:
    """Each constraint: whether it holds, and its text."""
    m, k = shape.rows, shape.cols
    bm_rows, bk, bm = tile.rows, tile.cols, tile.lanes
    if min(bm_rows, bk, bm) < 1:
        return [(False, "tile sizes are positive")]
    allowed = " or ".join(str(n) for n in sorted(target.lanes))
    both = [
        (bm in target.lanes, f"bm must be {allowed} here"),
        (bm_rows % bm == 0, f"BM must be a multiple of bm, {bm_rows} % {bm} is {bm_rows % bm}"),
        (m % bm_rows == 0, f"M must be a multiple of BM, {m} % {bm_rows} is {m % bm_rows}"),
        (bm_rows <= 4096, "BM may be 4096 at most"),
    ]
    if target.family == "TL1":
        return [
            *both,
            (bk % 16 == 0, f"BK must be a multiple of 16 (8 pairs a step), {bk} % 16 is {bk % 16}"),
            (bk <= 256, "BK may be 256 at most: sums of a block are 16 bits"),
            (k % bk == 0, f"K must be a multiple of BK, {k} % {bk} is {k % bk}"),
        ]
    return [
        *both,
        (bk % 24 == 0, f"BK must be a multiple of 24 (8 triples a step), {bk} % 24 is {bk % 24}"),
        (bk <= 240, "BK may be 240 at most: sums of a block are 16 bits"),
        (bk <= k, f"BK may be K at most, which is {k}"),
        (k % bk % 32 == 0, f"K % BK must be a multiple of 32, {k} % {bk} is {k % bk}"),
    ]
