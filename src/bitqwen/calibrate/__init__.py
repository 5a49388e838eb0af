"""Calibration: quantising by what a model's layers really see, instead of by their weights alone."""

from __future__ import annotations

from .calibration import DEFAULT_TOKENS, Calibration
from .texts import default_text

__all__ = ["DEFAULT_TOKENS", "Calibration", "default_text"]
