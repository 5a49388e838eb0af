"""How fast models run here: prefill and decode rows, interleaved, beside what the machine can do at most."""

from __future__ import annotations

from .plan import Side, Test, tests
from .results import Report, Row
from .runner import run

__all__ = ["Report", "Row", "Side", "Test", "run", "tests"]
