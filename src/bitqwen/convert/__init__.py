"""Conversion: from any source of weights to a GGUF file, one tensor at a time."""

from __future__ import annotations

from .pipeline import convert
from .report import ConversionReport, Progress, TensorReport

__all__ = ["ConversionReport", "Progress", "TensorReport", "convert"]
