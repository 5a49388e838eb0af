from __future__ import annotations

import pytest

from bitqwen.errors import UsageError
from bitqwen.measure.bench import plan
from bitqwen.measure.bench.plan import Test


def test_names_are_llama_benchs():
    assert Test("pp", 512).name == "pp512"
    assert Test("tg", 128, 4096).name == "tg128 @ d4096"


def test_each_depth_has_prefill_then_decode():
    found = plan.tests([16, 32], [4], [0, 64])
    assert [test.name for test in found] == [
        "pp16",
        "pp32",
        "tg4",
        "pp16 @ d64",
        "pp32 @ d64",
        "tg4 @ d64",
    ]
    assert plan.positions(found) == 96


def test_zero_means_no_such_test_and_doubles_are_run_once():
    assert [test.name for test in plan.tests([0], [4, 4], [0])] == ["tg4"]


@pytest.mark.parametrize(
    ("prompt", "generate", "depth"), [([0], [0], [0]), ([-1], [4], [0]), ([1], [1], [-5])]
)
def test_nothing_or_less_is_refused(prompt, generate, depth):
    with pytest.raises(UsageError):
        plan.tests(prompt, generate, depth)
