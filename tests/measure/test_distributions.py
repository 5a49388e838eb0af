from __future__ import annotations

import math

import numpy as np
import pytest
from fake_model import log_softmax
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitqwen.errors import CheckpointError
from bitqwen.measure.distributions import distribution, kl_divergence, negative_log_likelihood

ROWS = arrays.arrays(
    np.float32, st.integers(2, 60), elements=st.floats(-200, 200, width=32, allow_subnormal=False)
)


@given(ROWS)
def test_distribution_is_the_softmax(row: np.ndarray) -> None:
    found = distribution(row)
    expected = log_softmax(row)
    np.testing.assert_allclose(found.logprobs, expected.astype(float), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.probs, np.exp(expected).astype(float), rtol=1e-11, atol=1e-300)


@given(ROWS, st.data())
def test_negative_log_likelihood(row: np.ndarray, data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(row) - 1))
    expected = -float(log_softmax(row)[target])
    assert negative_log_likelihood(row, target) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(ROWS, st.data())
def test_kl_divergence_by_its_definition(row: np.ndarray, data: st.DataObject) -> None:
    other = data.draw(arrays.arrays(np.float32, row.shape, elements=st.floats(-200, 200, width=32)))
    p, q = log_softmax(row), log_softmax(other)
    expected = float((np.exp(p) * (p - q)).sum())
    found = kl_divergence(distribution(row), distribution(other))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert found >= 0


def test_kl_divergence_is_not_symmetric_and_zero_only_of_equals() -> None:
    p, q = (distribution(np.log(np.array(values, np.float32))) for values in ([0.5, 0.5], [0.9, 0.1]))
    assert kl_divergence(p, q) == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-6
    )
    assert kl_divergence(q, p) == pytest.approx(
        0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-6
    )
    assert kl_divergence(p, p) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    row = np.array([1, bad, 2], np.float32)
    with pytest.raises(CheckpointError, match="not finite"):
        distribution(row)
    with pytest.raises(CheckpointError, match="not finite"):
        negative_log_likelihood(row, 1)
