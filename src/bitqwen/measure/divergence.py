"""How far a model's predictions are from a reference's, token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import statistics, truncation
from .distributions import distribution, kl_divergence
from .passages import Passage, ScoringModel, logit_rows
from .statistics import Estimate

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PERCENTILES = (50, 90, 95, 99, 99.9)


@dataclass(frozen=True)
class TokenScores:
    """What was measured at each scored token; arrays are [rows], or [chunks, rows] when joined.

    Attributes:
        nll: the model's negative log-likelihood of the token that followed.
        reference_nll: the reference's.
        kl: KL(reference || model) in nats; where the reference is a file that holds only the likeliest
            tokens, an unbiased estimate.
        same_top: whether both find the same token likeliest.
        kl_low: no more than the exact KL(reference || model).
        kl_high: no less.
        kl_variance: of ``kl``, from the estimate alone.
    """

    nll: Floats
    reference_nll: Floats
    kl: Floats
    same_top: Bools
    kl_low: Floats
    kl_high: Floats
    kl_variance: Floats


@dataclass(frozen=True)
class Truncation:
    """What a saved reference, which holds only the likeliest tokens, leaves uncertain in the mean KL.

    Attributes:
        low: the exact mean on these tokens is not below this, whatever was left out.
        high: nor above this.
        standard_error: of the estimate of that exact mean.
    """

    low: float
    high: float
    standard_error: float


@dataclass(frozen=True)
class Divergence:
    """KL divergence and its companions over one text.

    Attributes:
        kl: mean KL(reference || model) in nats a token.
        percentiles: of the tokens' KL: percent -> nats.
        maximum: the largest KL of a token.
        same_top: share of tokens where both models find the same token likeliest.
        log_ratio: mean of log p_reference(token) - log p_model(token): the logarithm of the perplexities'
            ratio; its error is that of a paired difference.
        mean_delta_p: mean of p_model(token) - p_reference(token).
        rms_delta_p: root of its mean square.
        correlation: of the two models' negative log-likelihoods.
        truncation: for a saved reference; ``None`` where both models ran.
        tokens: how many were scored.
    """

    kl: Estimate
    percentiles: dict[float, float]
    maximum: float
    same_top: Estimate
    log_ratio: Estimate
    mean_delta_p: Estimate
    rms_delta_p: float
    correlation: float | None
    truncation: Truncation | None
    tokens: int

    @property
    def perplexity_ratio(self) -> float:
        """The model's perplexity over the reference's."""
        return math.exp(min(self.log_ratio.value, 709.0))


def compare_chunk(model: ScoringModel, reference: ScoringModel, passage: Passage, chunk: int) -> TokenScores:
    """Runs both models over a chunk, side by side.

    Raises:
        CheckpointError: a model's logits are not finite.
        UsageError: a model's vocabulary is smaller than the text's.
    """
    out = empty_scores(passage.rows)
    ours, theirs = (logit_rows(each, passage, chunk) for each in (model, reference))
    for i, (row, reference_row, target) in enumerate(zip(ours, theirs, passage.targets(chunk), strict=True)):
        q, p = distribution(row), distribution(reference_row)
        out.nll[i] = -q.logprobs[target]
        out.reference_nll[i] = -p.logprobs[target]
        out.same_top[i] = row.argmax() == reference_row.argmax()
        out.kl[i] = kl_divergence(p, q)
    out.kl_low[:] = out.kl_high[:] = out.kl
    return out


def compare_saved_chunk(
    model: ScoringModel, passage: Passage, chunk: int, saved: npt.NDArray[Any]
) -> TokenScores:
    """Runs a model over a chunk whose reference was saved.

    Args:
        model: the model.
        passage: the text, of the reference's own token ids.
        chunk: which of its chunks.
        saved: what was saved of that chunk, rows of :func:`~bitqwen.measure.truncation.row_type`, [rows].

    Raises:
        CheckpointError: the model's logits are not finite.
        UsageError: the model's vocabulary is smaller than the text's.
    """
    out = empty_scores(passage.rows)
    ours = logit_rows(model, passage, chunk)
    for i, (row, kept, target) in enumerate(zip(ours, saved, passage.targets(chunk), strict=True)):
        q = distribution(row)
        divergence = truncation.divergence(kept, q)
        out.nll[i] = -q.logprobs[target]
        out.reference_nll[i] = -kept["target"]
        out.same_top[i] = row.argmax() == kept["top"]["id"][0]
        out.kl[i] = divergence.estimate
        out.kl_low[i], out.kl_high[i] = divergence.low, divergence.high
        out.kl_variance[i] = divergence.variance
    return out


def empty_scores(rows: int) -> TokenScores:
    """Scores of as many tokens, all zero."""
    floats = np.zeros((6, rows))
    return TokenScores(
        nll=floats[0],
        reference_nll=floats[1],
        kl=floats[2],
        same_top=np.zeros(rows, np.bool_),
        kl_low=floats[3],
        kl_high=floats[4],
        kl_variance=floats[5],
    )


def join(chunks: list[TokenScores]) -> TokenScores:
    """Chunks' scores [rows] as one, [chunks, rows]."""
    return TokenScores(
        **{name: np.stack([getattr(chunk, name) for chunk in chunks]) for name in vars(chunks[0])}
    )


def summarize(scores: TokenScores, *, truncated: bool = False) -> Divergence:
    """The divergence over a text.

    Args:
        scores: of its tokens, [chunks, rows].
        truncated: whether the reference holds only the likeliest tokens.
    """
    delta_p = np.exp(-scores.nll) - np.exp(-scores.reference_nll)
    return Divergence(
        kl=statistics.mean(scores.kl),
        percentiles={
            percent: float(value)
            for percent, value in zip(PERCENTILES, np.percentile(scores.kl, PERCENTILES), strict=True)
        },
        maximum=float(scores.kl.max()),
        same_top=statistics.proportion(scores.same_top),
        log_ratio=statistics.mean(scores.nll - scores.reference_nll),
        mean_delta_p=statistics.mean(delta_p),
        rms_delta_p=math.sqrt(float(np.square(delta_p).mean())),
        correlation=_correlation(scores.nll, scores.reference_nll),
        truncation=Truncation(
            low=float(scores.kl_low.mean()),
            high=float(scores.kl_high.mean()),
            standard_error=math.sqrt(float(scores.kl_variance.sum())) / scores.kl.size,
        )
        if truncated
        else None,
        tokens=scores.kl.size,
    )


def _correlation(first: Floats, second: Floats) -> float | None:
    """None where one of them does not vary."""
    if first.size < 2 or not (np.ptp(first) and np.ptp(second)):
        return None
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
