"""Quantisation: schemes, and how a matrix becomes a tensor type's bytes."""

from __future__ import annotations

from .encode import Encoded, quantize
from .schemes import Scheme, TensorPlan, get, names

__all__ = ["Encoded", "Scheme", "TensorPlan", "get", "names", "quantize"]
