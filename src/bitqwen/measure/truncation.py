"""A distribution cut to its likeliest tokens, and the KL divergence from it: an estimate with proved bounds.

A row of a saved reference holds, of the reference's distribution p over the vocabulary: the set S of the
likeliest tokens with their probabilities, the mass t that p has outside S, and a sample of tokens outside
S, drawn in proportion to p. The model's distribution q is known in full. Split KL(p || q) into

    core = sum over S of p log(p / q)              known exactly
    rest = sum outside S of p log(p / q)           not known: which tokens hold t was not saved

Lower bound. Lump everything outside S together on both sides; lumping cannot raise a KL divergence (the
data-processing inequality, here the log-sum inequality): rest >= t log(t / u), u the mass of q outside S.
It is exact where p and q are proportional outside S, so it is nearly right for mild damage.

Upper bound. Outside S, p is at most c, the smallest probability in S, and sums to t. Over these p the rest
is convex, so it is largest at a corner of their polytope: c on floor(t / c) tokens and what remains on
one, and the rearrangement inequality says which: those with the smallest q. It is attained, so nothing
better can be said from what was saved; and it is far away (every unlikely token of the model would have to
be one that the reference likes as well as any outside S).

Estimate. The mean of log(p / q) over the sample, times t, has the rest as its expectation, whatever p and
q are. The sample is systematic (one random offset, equal steps of probability): its variance is at most
about that of independent draws, which is what is reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .distributions import RowDistribution

# A log-probability is saved as float32: its relative error is at most this.
_ROUNDING = 2.0**-24


@dataclass(frozen=True)
class TruncatedDivergence:
    """KL(reference || model) of one token, from a truncated reference; in nats.

    Attributes:
        estimate: unbiased, so a single token's may lie a little outside the bounds; without a sample, what
            the lower bound allows for rounding is all that separates it from that.
        variance: of the estimate.
        low: the exact value is no less.
        high: no more.
    """

    estimate: float
    variance: float
    low: float
    high: float


def row_type(top: int, samples: int) -> np.dtype[Any]:
    """The layout of a truncated row: 16 + 8 (top + samples) bytes, little endian.

    | offset | bytes       | field                                                                     |
    |--------|-------------|---------------------------------------------------------------------------|
    | 0      | 8           | mass outside the top, float64                                             |
    | 8      | 4           | log-probability of the token that followed, float32                       |
    | 12     | 4           | zero                                                                      |
    | 16     | 8 x top     | the likeliest tokens, best first: id uint32, log-probability float32      |
    | ...    | 8 x samples | tokens drawn from the others, in proportion to probability: as above      |
    """
    entry = np.dtype([("id", "<u4"), ("logprob", "<f4")])
    return np.dtype(
        [
            ("tail", "<f8"),
            ("target", "<f4"),
            ("zero", "<u4"),
            ("top", entry, (top,)),
            ("sample", entry, (samples,)),
        ]
    )


def truncate(p: RowDistribution, target: int, row: npt.NDArray[Any], random: np.random.Generator) -> None:
    """Fills a row of :func:`row_type` from a whole distribution.

    Args:
        p: the reference's.
        target: the token that followed.
        row: an array of one row, []; its top has no more entries than the vocabulary.
        random: chooses the sample's offset.
    """
    top, samples = row["top"].shape[-1], row["sample"].shape[-1]
    # By falling probability, ids rising where it is equal, as argmax has it.
    last = np.partition(p.logprobs, -top)[-top]
    best = np.flatnonzero(p.logprobs >= last)
    best = best[np.argsort(-p.logprobs[best], kind="stable")][:top]
    rest = p.probs.copy()
    rest[best] = 0
    tail = rest.sum()
    row["tail"] = tail
    row["target"] = p.logprobs[target]
    row["top"]["id"] = best
    row["top"]["logprob"] = p.logprobs[best]
    if samples:
        drawn = _systematic(rest, samples, random.random()) if tail > 0 else best[:1]
        row["sample"]["id"] = drawn
        row["sample"]["logprob"] = p.logprobs[drawn]


def _systematic(weights: npt.NDArray[np.float64], count: int, offset: float) -> npt.NDArray[np.int64]:
    """Indices drawn in proportion to weights [n]: equal steps through their running sum."""
    running = np.cumsum(weights)
    places = (np.arange(count) + offset) * (running[-1] / count)
    # Rounding may carry the last place to the very end, beyond the last index with a weight.
    last = np.searchsorted(running, running[-1])
    drawn: npt.NDArray[np.int64] = np.minimum(np.searchsorted(running, places, side="right"), last)
    return drawn


def divergence(row: npt.NDArray[Any], q: RowDistribution) -> TruncatedDivergence:
    """KL(reference || model) from a truncated reference.

    Args:
        row: of :func:`row_type`, [].
        q: the model's distribution over the same ids.
    """
    ids = row["top"]["id"].astype(np.int64)
    log_p = row["top"]["logprob"].astype(np.float64)
    p = np.exp(log_p)
    log_ratio = log_p - q.logprobs[ids]
    core = float(p @ log_ratio)
    # What rounding a log-probability by e does to p log(p / q): e p (log(p / q) + 1), and a little more.
    slack = 2 * _ROUNDING * float((p * -log_p) @ (np.abs(log_ratio) + 1))
    tail = float(row["tail"])
    if tail <= 0 or len(ids) == len(q.probs):
        return TruncatedDivergence(max(0.0, core), 0.0, max(0.0, core - slack), max(0.0, core + slack))

    outside = np.ones(len(q.probs), np.bool_)
    outside[ids] = False
    # Never quite 0, or a logarithm of it would say that nothing at all is known.
    model_tail = max(float(q.probs[outside].sum()), np.finfo(np.float64).tiny)
    low = core + tail * math.log(tail / model_tail)
    cap = float(p[-1]) * (1 + 2 * _ROUNDING * -float(log_p[-1]))
    high = core + _worst_rest(tail, cap, q.logprobs[outside])
    estimate, variance = low, 0.0
    count = row["sample"].shape[-1]
    if count:
        drawn = row["sample"]["id"].astype(np.int64)
        ratios = row["sample"]["logprob"].astype(np.float64) - q.logprobs[drawn]
        estimate = core + tail * float(ratios.mean())
        variance = tail * tail * float(ratios.var(ddof=1)) / count if count > 1 else 0.0
    low = max(0.0, low - slack)
    return TruncatedDivergence(estimate, variance, low, max(low, high + slack))


def _worst_rest(tail: float, cap: float, logprobs: npt.NDArray[np.float64]) -> float:
    """The largest sum of p log(p / q) over p with 0 <= p <= cap that sum to ``tail``.

    Args:
        tail: the sum of p.
        cap: the most that one token may have.
        logprobs: log q of the tokens, [n], n cap >= tail.
    """
    full = min(int(tail / cap), len(logprobs))
    needed = min(full + 1, len(logprobs))
    smallest = np.sort(np.partition(logprobs, needed - 1)[:needed])
    worst = cap * (full * math.log(cap) - float(smallest[:full].sum()))
    left = tail - full * cap
    if left > 0 and full < len(logprobs):
        worst += left * (math.log(left) - float(smallest[full]))
    return worst
