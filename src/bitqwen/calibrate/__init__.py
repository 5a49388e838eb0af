"""Calibration: quantising by what a model's layers really see, instead of by their weights alone."""

from __future__ import annotations

from .calibration import DEFAULT_TOKENS, Calibration
from .fitting import Budgets, Fitting, fit_to_size, weights_to_bytes
from .texts import default_text

__all__ = [
    "DEFAULT_TOKENS",
    "Budgets",
    "Calibration",
    "Fitting",
    "default_text",
    "fit_to_size",
    "weights_to_bytes",
]
