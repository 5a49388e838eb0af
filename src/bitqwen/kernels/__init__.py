"""Kernels generated for a model's exact shapes: C++ source, its compilation, and proof that it is right."""

from __future__ import annotations

from .generator import Generated, generate
from .presets import SIZES, preset
from .shapes import MatrixShape, matrix_shapes
from .targets import TARGETS, Target
from .tiles import Tile, choose

__all__ = [
    "SIZES",
    "TARGETS",
    "Generated",
    "MatrixShape",
    "Target",
    "Tile",
    "choose",
    "generate",
    "matrix_shapes",
    "preset",
]
