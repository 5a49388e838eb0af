"""What a number was measured on: every benchmark prints it and saves it with its results."""

from __future__ import annotations

import json
from pathlib import Path

from bitqwen.measure.machine import describe

__all__ = ["describe", "save"]


def save(path: Path, benchmark: str, results: object) -> None:
    """Writes results with the machine's description as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": benchmark, "machine": describe(), "results": results}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
