"""Perplexity with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import statistics
from .distributions import negative_log_likelihood
from .passages import Passage, ScoringModel, logit_rows

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        value: exp of the mean negative log-likelihood of a token.
        standard_error: of ``value``, tokens taken as independent, as llama-perplexity prints it.
        low: lower end of the 95 % confidence interval, chunks taken as independent.
        high: upper end.
        mean_nll: mean negative log-likelihood of a token, in nats.
        tokens: how many were scored.
    """

    value: float
    standard_error: float
    low: float
    high: float
    mean_nll: float
    tokens: int


def summarize(nll: Floats) -> Perplexity:
    """Perplexity from the negative log-likelihoods of the scored tokens, [chunks, tokens]."""
    estimate = statistics.mean(nll)
    value = _exp(estimate.value)
    return Perplexity(
        value=value,
        standard_error=value * estimate.standard_error,
        low=_exp(estimate.low),
        high=_exp(estimate.high),
        mean_nll=estimate.value,
        tokens=nll.size,
    )


def chunk_nll(model: ScoringModel, passage: Passage, chunk: int) -> Floats:
    """Negative log-likelihoods of a chunk's scored tokens, [rows].

    Raises:
        CheckpointError: the model's logits are not finite.
    """
    targets = passage.targets(chunk).tolist()
    rows = logit_rows(model, passage, chunk)
    return np.array([negative_log_likelihood(row, target) for row, target in zip(rows, targets, strict=True)])


def _exp(x: float) -> float:
    """exp, where a model far worse than chance would overflow it."""
    return math.exp(x) if x < 709 else math.inf
