"""The estimate and the proved bounds of a truncated reference, against the whole distributions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitqwen.measure import truncation
from bitqwen.measure.distributions import RowDistribution, distribution, kl_divergence


def saved(p: RowDistribution, *, top: int, samples: int, seed: int = 0, target: int = 0) -> npt.NDArray[Any]:
    row = np.zeros((), truncation.row_type(top, samples))
    truncation.truncate(p, target, row, np.random.default_rng(seed))
    return row


def pair(vocab: int, *, scale: float, noise: float, seed: int) -> tuple[RowDistribution, RowDistribution]:
    random = np.random.default_rng(seed)
    logits = scale * random.standard_normal(vocab)
    other = logits + noise * random.standard_normal(vocab)
    return distribution(logits.astype(np.float32)), distribution(other.astype(np.float32))


PAIRS = st.builds(
    pair,
    st.integers(2, 400),
    scale=st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    noise=st.sampled_from([0.0, 1e-3, 0.5, 3.0, 30.0]),
    seed=st.integers(0, 1 << 30),
)


@given(PAIRS, st.data())
def test_the_bounds_hold(models: tuple[RowDistribution, RowDistribution], data: st.DataObject) -> None:
    p, q = models
    top = data.draw(st.integers(1, len(p.probs)))
    found = truncation.divergence(saved(p, top=top, samples=8), q)
    exact = kl_divergence(p, q)
    margin = 1e-9 * (1 + exact)
    assert 0 <= found.low <= exact + margin
    assert exact - margin <= found.high


@given(PAIRS)
def test_the_whole_vocabulary_is_exact(models: tuple[RowDistribution, RowDistribution]) -> None:
    p, q = models
    found = truncation.divergence(saved(p, top=len(p.probs), samples=0), q)
    exact = kl_divergence(p, q)
    assert found.estimate == pytest.approx(exact, rel=1e-4, abs=1e-4)
    assert found.high - found.low < 1e-4 * (1 + exact)


def test_the_lower_bound_is_reached_where_tails_are_proportional() -> None:
    p, _ = pair(200, scale=2, noise=0, seed=1)
    row = saved(p, top=10, samples=0)
    inside = np.isin(np.arange(200), row["top"]["id"])
    q = distribution((p.logprobs + np.where(inside, -0.7, 0.4)).astype(np.float32))
    found = truncation.divergence(row, q)
    assert found.low == pytest.approx(kl_divergence(p, q), rel=1e-4)
    assert found.low <= found.estimate < found.low + 1e-5


def test_the_upper_bound_is_reached_by_the_worst_reference() -> None:
    """The reference that the bound's proof constructs: the cap on the tokens that the model likes least."""
    q, _ = pair(40, scale=2, noise=0, seed=2)
    order = np.argsort(q.probs)
    probs = np.full(40, 1e-12)
    probs[order[-3:]] = [0.3, 0.3, 0.1]  # the top, whose smallest is 0.1
    probs[order[:3]] = 0.1 - 1e-6
    p = distribution(np.log(probs / probs.sum()).astype(np.float32))
    found = truncation.divergence(saved(p, top=3, samples=0), q)
    assert found.high == pytest.approx(kl_divergence(p, q), rel=1e-3)
    assert found.low < 0.9 * found.high


@pytest.mark.parametrize("tail", [0.05, 0.25, 0.31])
def test_the_upper_bound_is_the_largest_of_all_corners(tail: float) -> None:
    """Small enough to try every corner of the polytope of tails."""
    random = np.random.default_rng(3)
    logprobs = np.log(random.dirichlet(np.ones(5)))
    cap = 0.1
    full = int(tail / cap)
    corners = []
    for chosen in itertools.permutations(range(5), full + 1):
        weights = [cap] * full + [tail - full * cap]
        corners.append(sum(w * (np.log(w) - logprobs[i]) for w, i in zip(weights, chosen, strict=True)))
    assert truncation._worst_rest(tail, cap, logprobs) == pytest.approx(max(corners), rel=1e-12)


def test_the_estimate_is_unbiased_and_its_variance_honest() -> None:
    p, q = pair(3000, scale=1.5, noise=1.0, seed=4)
    exact = kl_divergence(p, q)
    found = [truncation.divergence(saved(p, top=50, samples=32, seed=seed), q) for seed in range(600)]
    estimates = np.array([each.estimate for each in found])
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert abs(estimates.mean() - exact) < 5 * error
    reported = np.sqrt(np.mean([each.variance for each in found]))
    assert estimates.std(ddof=1) < 1.2 * reported
    # It is worth having: the lower bound alone is off by more than all this noise.
    assert exact - found[0].low > 20 * error
    assert all(each.low <= exact <= each.high for each in found)


@given(PAIRS, st.integers(1, 20), st.integers(1, 40))
def test_what_is_saved(models: tuple[RowDistribution, RowDistribution], top: int, samples: int) -> None:
    p, _ = models
    top = min(top, len(p.probs))
    row = saved(p, top=top, samples=samples, target=1)
    ids = row["top"]["id"].astype(int)
    assert ids[0] == p.logprobs.argmax()
    assert len(set(ids.tolist())) == top
    np.testing.assert_array_equal(row["top"]["logprob"], p.logprobs[ids].astype(np.float32))
    assert (np.diff(row["top"]["logprob"]) <= 0).all()
    outside = np.setdiff1d(np.arange(len(p.probs)), ids)
    assert float(row["tail"]) == pytest.approx(p.probs[outside].sum(), rel=1e-9, abs=1e-300)
    assert row["target"] == np.float32(p.logprobs[1])
    if row["tail"] > 0:
        drawn = row["sample"]["id"].astype(int)
        assert (p.probs[drawn] > 0).all()
        assert not np.isin(drawn, ids).any()


def test_samples_follow_the_probabilities() -> None:
    weights = np.array([0.0, 1.0, 0.0, 3.0, 4.0, 0.0])
    counts = np.zeros(6)
    for offset in np.linspace(0, 1, 50, endpoint=False):
        drawn = truncation._systematic(weights, 8, float(offset))
        counts += np.bincount(drawn, minlength=6)
    assert counts.tolist() == [0, 50, 0, 150, 200, 0]


def test_row_type_is_packed_as_documented() -> None:
    layout = truncation.row_type(3, 5)
    assert layout.itemsize == 16 + 8 * (3 + 5)
    assert layout.fields is not None
    assert {name: offset for name, (_, offset) in layout.fields.items()} == {
        "tail": 0,
        "target": 8,
        "zero": 12,
        "top": 16,
        "sample": 16 + 24,
    }
