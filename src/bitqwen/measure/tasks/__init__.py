"""Tasks that a model solves or does not: multiple choice, exact answers, programs."""

from __future__ import annotations

from .results import ItemResult, TaskResult, paired

__all__ = ["ItemResult", "TaskResult", "paired"]
