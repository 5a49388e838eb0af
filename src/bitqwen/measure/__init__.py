"""What quantising does to a model, in numbers: perplexity, KL divergence, and tasks."""

from __future__ import annotations

from .divergence import Divergence
from .evaluation import Progress, TextResult, evaluate, save_reference, saved_passages
from .passages import Passage, passage
from .perplexity import Perplexity
from .reference import ReferenceFile
from .statistics import Estimate, McNemar, mcnemar

__all__ = [
    "Divergence",
    "Estimate",
    "McNemar",
    "Passage",
    "Perplexity",
    "Progress",
    "ReferenceFile",
    "TextResult",
    "evaluate",
    "mcnemar",
    "passage",
    "save_reference",
    "saved_passages",
]
