"""From a model's name to a file that answers: fetch, generate kernels, convert, tune, try; each step once."""

from __future__ import annotations

from .pipeline import Needs, QuantType, Step, needs, quant_type, run
from .state import State

__all__ = ["Needs", "QuantType", "State", "Step", "needs", "quant_type", "run"]
