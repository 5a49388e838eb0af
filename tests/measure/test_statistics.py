from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitqwen.measure import statistics


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    # Student's t at 0.975, as printed in any table.
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (7, 2.36462), (10, 2.22814), (29, 2.04523), (120, 1.97993)],
)
def test_student_quantiles_are_the_tables(freedom: int, quantile: float) -> None:
    assert statistics.student_quantile(freedom) == pytest.approx(quantile, abs=6e-6 * quantile)


def test_student_tends_to_the_normal() -> None:
    assert statistics.student_quantile(100_000) == pytest.approx(1.959964, abs=5e-5)


def test_mean_and_its_error_as_llama_cpp_has_them() -> None:
    values = np.random.default_rng(1).exponential(size=(6, 40))
    estimate = statistics.mean(values)
    flat = values.ravel()
    assert estimate.value == pytest.approx(flat.mean())
    # sqrt((mean of squares - square of mean) / (n - 1))
    assert estimate.standard_error == pytest.approx(
        math.sqrt(((flat**2).mean() - flat.mean() ** 2) / (flat.size - 1))
    )
    assert estimate.standard_error == pytest.approx(flat.std(ddof=1) / math.sqrt(flat.size))


def test_an_interval_is_wider_where_chunks_differ() -> None:
    random = np.random.default_rng(2)
    alike = random.standard_normal((8, 100))
    apart = alike + 5 * random.standard_normal((8, 1))
    narrow, wide = statistics.mean(alike), statistics.mean(apart)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    by_hand = apart.mean(axis=1)
    reach = 2.36462 * by_hand.std(ddof=1) / math.sqrt(8)
    assert wide.low == pytest.approx(by_hand.mean() - reach, rel=1e-5)
    assert wide.high == pytest.approx(by_hand.mean() + reach, rel=1e-5)


def test_intervals_of_the_mean_hold_as_often_as_they_say() -> None:
    random = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        estimate = statistics.mean(random.standard_normal((6, 1)) + random.standard_normal((6, 20)))
        held += estimate.low <= 0 <= estimate.high
    # 95 % of 400 is 380; fewer than 362 has a probability below 1e-4, and the interval may be wider.
    assert held >= 362


@given(st.integers(1, 500), st.data())
def test_wilson_by_its_definition(count: int, data: st.DataObject) -> None:
    share = data.draw(st.integers(0, count)) / count
    low, high = statistics.wilson(share, count)
    assert 0 <= low <= share <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        # An end is where the observed share lies exactly 1.96 standard errors away.
        assert abs(share - end) == pytest.approx(
            1.959964 * math.sqrt(end * (1 - end) / count), rel=1e-4, abs=1e-9
        )


def test_a_proportion_of_one_is_not_certain() -> None:
    estimate = statistics.proportion(np.ones((1, 100), np.bool_))
    assert estimate.value == estimate.high == 1
    assert estimate.low == pytest.approx(1 / (1 + 1.959964**2 / 100), rel=1e-6)


def test_a_proportion_counts_alike_chunks_for_less() -> None:
    hits = np.zeros((10, 50), np.bool_)
    hits[:5] = True  # each chunk all or nothing: 10 trials, not 500
    estimate = statistics.proportion(hits)
    assert (estimate.low, estimate.high) == pytest.approx(statistics.wilson(0.5, 9), rel=1e-9)
    mixed = statistics.proportion(hits.T)
    assert (mixed.low, mixed.high) == statistics.wilson(0.5, 500)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_sign_test_of_the_differing_items(pairs: list[tuple[bool, bool]]) -> None:
    model = np.array([ours for ours, _ in pairs], np.bool_)
    reference = np.array([theirs for _, theirs in pairs], np.bool_)
    found = statistics.mcnemar(model, reference)
    gained = sum(ours and not theirs for ours, theirs in pairs)
    lost = sum(theirs and not ours for ours, theirs in pairs)
    assert (found.only_model, found.only_reference) == (gained, lost)
    # Of all equally likely ways in which the differing items could have fallen, those at least as uneven.
    total = gained + lost
    extreme = sum(math.comb(total, k) for k in range(total + 1) if abs(2 * k - total) >= abs(gained - lost))
    assert found.p_value == pytest.approx(float(Fraction(extreme, 2**total)))


def test_mcnemar_of_many_items() -> None:
    model = np.arange(5000) % 2 == 0
    found = statistics.mcnemar(model, ~model)
    assert (found.only_model, found.only_reference, found.p_value) == (2500, 2500, 1.0)
