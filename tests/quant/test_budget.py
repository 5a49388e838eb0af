from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType
from bitqwen.quant import TensorPlan
from bitqwen.quant.budget import Option, allocate, frontier

TYPES = [TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q6_K]


def options(random, scale):
    losses = np.sort(random.random(4))[::-1] * scale
    return [
        Option(TensorPlan(kind, "mse"), int(size), float(loss))
        for kind, size, loss in zip(TYPES, (100, 130, 180, 260), losses, strict=True)
    ]


def test_close_to_the_best_of_all_mixes():
    random = np.random.default_rng(0)
    for budget in (520, 700, 900, 1200):
        tensors = {f"t{i}": options(random, 10.0 ** random.integers(-1, 2)) for i in range(5)}
        found = allocate(tensors, budget)
        best = min(
            sum(option.loss for option in mix)
            for mix in itertools.product(*tensors.values())
            if sum(option.nbytes for option in mix) <= budget
        )
        smallest = sum(each[0].loss for each in tensors.values())
        assert found.nbytes <= budget
        assert set(found.plans) == set(tensors)
        assert found.loss <= best + 0.15 * (smallest - best) + 1e-12


def test_a_sensitive_tensor_gets_more_bits():
    tensors = {
        "calm": [
            Option(TensorPlan(kind, "mse"), size, 1.0 / size)
            for kind, size in zip(TYPES, (1, 2, 3, 4), strict=True)
        ],
        "vital": [
            Option(TensorPlan(kind, "mse"), size, 9.0 / size)
            for kind, size in zip(TYPES, (1, 2, 3, 4), strict=True)
        ],
    }
    found = allocate(tensors, 5)
    assert found.plans["vital"].tensor_type == TensorType.Q6_K
    assert found.plans["calm"].tensor_type == TensorType.Q2_K


def test_options_that_cost_more_and_give_less_are_dropped():
    plan = TensorPlan(TensorType.Q4_0, "mse")
    kept = frontier(
        [Option(plan, 10, 5.0), Option(plan, 20, 6.0), Option(plan, 30, 1.0), Option(plan, 21, 4.9)]
    )
    assert [option.nbytes for option in kept] == [10, 30]


def test_more_bytes_never_lose_more():
    random = np.random.default_rng(3)
    tensors = {f"t{i}": options(random, 1.0) for i in range(30)}
    losses = [allocate(tensors, budget).loss for budget in range(3000, 8000, 250)]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))


def test_too_small_a_budget():
    with pytest.raises(UsageError, match="100 bytes at the least") as caught:
        allocate({"t": options(np.random.default_rng(0), 1.0)}, 99)
    assert "smaller model" in caught.value.hint
