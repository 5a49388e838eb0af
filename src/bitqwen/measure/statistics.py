"""Means, proportions and paired tests, with intervals that do not promise too much.

Tokens of one chunk share their context, so their values are not independent. A standard error here treats
tokens as independent, as llama.cpp's does, so that both can be compared; an interval takes chunks as the
sampling unit and is wider where chunks differ.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens.

    Attributes:
        value: the mean.
        standard_error: of the mean, tokens taken as independent.
        low: lower end of the 95 % confidence interval, chunks taken as independent.
        high: upper end.
    """

    value: float
    standard_error: float
    low: float
    high: float


def mean(values: Floats) -> Estimate:
    """The mean of values [chunks, tokens]; of a single chunk, the interval takes tokens as independent."""
    value = float(values.mean())
    count = values.size
    error = math.sqrt(float(values.var()) / (count - 1)) if count > 1 else math.inf
    chunks = len(values)
    if chunks > 1:
        # A chunk that is less like itself than chance would have it is chance.
        spread = max(float(values.mean(axis=1).std(ddof=1)) / math.sqrt(chunks), error)
        reach = student_quantile(chunks - 1) * spread
    else:
        reach = student_quantile(max(count - 1, 1)) * error
    return Estimate(value, error, value - reach, value + reach)


def proportion(hits: npt.NDArray[np.bool_]) -> Estimate:
    """The share of true values [chunks, tokens], with Wilson's interval, which holds near 0 and 1 too.

    Where chunks differ more than chance would have it, the interval is that of proportionally fewer tokens.
    """
    values = hits.astype(np.float64)
    share, count = float(values.mean()), values.size
    variance = share * (1 - share)
    error = math.sqrt(variance / (count - 1)) if count > 1 else math.inf
    effective = float(count)
    if len(values) > 1 and variance > 0:
        between = float(values.mean(axis=1).var(ddof=1)) / len(values)
        effective /= max(1.0, between / (variance / count))
    return Estimate(share, error, *wilson(share, effective))


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share seen in ``count`` independent trials."""
    if count <= 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) ** 2
    center = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count * count))) / (1 + z2 / count)
    # Exactly 0 or 1 at the ends, where rounding would leave a little more or less.
    low = 0.0 if share == 0 else max(0.0, center - reach)
    return low, 1.0 if share == 1 else min(1.0, center + reach)


@functools.cache
def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """How many standard errors a two-sided interval reaches, by Student's distribution.

    Args:
        freedom: degrees of freedom, at least 1.
        confidence: the interval's, above 0 and below 1.
    """
    low, high = 0.0, 1.0
    while _student_within(high, freedom) < confidence:
        high *= 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if _student_within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle


def _student_within(t: float, freedom: int) -> float:
    """Probability that a variable of Student's distribution lies within -t and t.

    For whole degrees of freedom it is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    term, total = 1.0, 0.0
    if freedom % 2:
        term = math.cos(angle)
        for k in range(1, freedom, 2):
            total += term
            term *= cos2 * (k + 1) / (k + 2)
        return 2 / math.pi * (angle + math.sin(angle) * total)
    for k in range(0, freedom, 2):
        total += term
        term *= cos2 * (k + 1) / (k + 2)
    return math.sin(angle) * total


@dataclass(frozen=True)
class McNemar:
    """Two models on the same items.

    Attributes:
        only_model: items that the model solves and the reference does not.
        only_reference: the other way round.
        p_value: two-sided and exact: how often chance alone would make the two differ as much or more.
    """

    only_model: int
    only_reference: int
    p_value: float


def mcnemar(model: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test of outcomes [items] of two models; only items where they differ count."""
    only_model = int((model & ~reference).sum())
    only_reference = int((reference & ~model).sum())
    differing = only_model + only_reference
    tail = sum(math.comb(differing, k) for k in range(min(only_model, only_reference) + 1))
    # Whole numbers until here: 2 ** differing has no place in a float for more than 1,023 items.
    p_value = min(1.0, 2 * tail / (1 << differing))
    return McNemar(only_model, only_reference, p_value)
