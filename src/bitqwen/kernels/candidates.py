"""Generated kernels for the products that the tuner times: which there can be, compiled and proved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bitqwen import _native
from bitqwen.errors import BitqwenError, UsageError

from . import compiler
from .generator import generate_for
from .products import Product
from .shapes import MatrixShape
from .targets import TARGETS, Target, runs_here
from .tiles import Tile, choose, scale_columns

# Packed formats whose weights may be ternary, and the columns of their activation and weight scales.
_SCALES = {"ternary": (128, 256), "Q2_0": (64, 64)}


class Candidates(NamedTuple):
    """Libraries in the cache, by file name; and in a sentence why there are none or not all."""

    libraries: list[str]
    why_not: str


def target_here() -> Target | None:
    """The best target that this CPU runs."""
    return next((target for target in reversed(TARGETS.values()) if runs_here(target)), None)


def compiled(products: Sequence[Product]) -> Candidates:
    """Generates, compiles and proves kernels for all products whose weights may be ternary."""
    target = target_here()
    wanted = [product for product in products if product.key.format in _SCALES]
    if not wanted:
        return Candidates([], "generated kernels are for ternary weights, which this model has not")
    if target is None:
        return Candidates([], "there are no generated kernels for this CPU")
    kernels = [kernel for product in wanted if (kernel := _kernel(product, target)) is not None]
    if not kernels:
        return Candidates([], "no generated kernel fits these shapes")
    command = "bitqwen kernels tune"
    made = generate_for(kernels, target, model="these shapes", command=command)
    try:
        path = compiler.shared_library(made.header, target.flags)
        _native.load_generated(str(path))
    except BitqwenError as error:
        return Candidates([], f"generated kernels were left out: {error.message}")
    return Candidates([path.name], "")


def _kernel(product: Product, target: Target) -> tuple[MatrixShape, Tile] | None:
    """A kernel for each matrix of a product; None where tiles or scales do not fit."""
    key = product.key
    if scale_columns(key.cols) != _SCALES[key.format]:
        return None
    try:
        tile = choose(MatrixShape(product.granule, key.cols, ()), target)
    except UsageError:
        return None
    return MatrixShape(key.rows, key.cols, product.names), tile
