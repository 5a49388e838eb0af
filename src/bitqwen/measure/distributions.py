"""Log-probabilities and divergences from logits, row by row, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitqwen.errors import CheckpointError

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RowDistribution:
    """One row of logits as a distribution.

    Attributes:
        logprobs: float64 [vocab].
        probs: float64 [vocab].
    """

    logprobs: Floats
    probs: Floats


def distribution(row: Logits) -> RowDistribution:
    """Log-softmax and softmax of logits [vocab].

    Raises:
        CheckpointError: the logits are not finite.
    """
    largest = _largest(row)
    logprobs = row.astype(np.float64)
    # Shifted by the largest, so that no exponential overflows.
    logprobs -= largest
    probs = np.exp(logprobs)
    total = probs.sum()
    probs /= total
    logprobs -= np.log(total)
    return RowDistribution(logprobs, probs)


def negative_log_likelihood(row: Logits, target: int) -> float:
    """-log p(target), from logits [vocab].

    Raises:
        CheckpointError: the logits are not finite.
    """
    largest = _largest(row)
    # float32 exponentials are accurate to a ten-millionth, and their sum is a float64.
    total = float(np.exp(row - largest).sum(dtype=np.float64))
    return float(largest) + math.log(total) - float(row[target])


def kl_divergence(reference: RowDistribution, model: RowDistribution) -> float:
    """KL(reference || model) in nats: sum of p log(p / q)."""
    # The differences of logarithms are finite: logits are. What rounding leaves below zero is zero.
    return max(0.0, float(reference.probs @ (reference.logprobs - model.logprobs)))


def _largest(row: Logits) -> np.float32:
    largest: np.float32 = row.max()
    # A NaN is both the largest and the smallest.
    if not (np.isfinite(largest) and np.isfinite(row.min())):
        raise CheckpointError(
            "The model's logits are not finite.",
            hint="Its weights are damaged, or overflow in its number formats: convert it again.",
        )
    return largest
