"""Quantisation: schemes, and how a matrix becomes a tensor type's bytes."""

from __future__ import annotations

from . import codebooks
from .methods import METHODS, Encoded, Method, Statistics, quantize
from .recipe import DEFAULT_RECIPE, Recipe
from .rotation import Rotation
from .schemes import Scheme, TensorPlan, file_type, get, names

__all__ = [
    "DEFAULT_RECIPE",
    "METHODS",
    "Encoded",
    "Method",
    "Recipe",
    "Rotation",
    "Scheme",
    "Statistics",
    "TensorPlan",
    "codebooks",
    "file_type",
    "get",
    "names",
    "quantize",
]
