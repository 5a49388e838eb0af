from __future__ import annotations

import pytest

from bitqwen.measure.bench.profiles import Profile


def operation(name: str, seconds: float, nbytes: int = 0) -> dict:
    return {
        "name": name,
        "calls": 1,
        "seconds": seconds,
        "waiting": seconds / 10,
        "barriers": 4,
        "bytes": nbytes,
    }


@pytest.fixture
def profile() -> Profile:
    operations = [
        ("embedding", 0.1),
        ("query_key_value", 1.0),
        ("attention", 1.4),
        ("gate_up", 3.5),
        ("down", 1.5),
    ]
    timed = tuple(operation(name, seconds, int(seconds * 2e9)) for name, seconds in operations)
    return Profile(tokens=4, seconds=10.0, operations=(*timed, operation("head", 2.0)))


def test_the_table_has_each_operation_per_token_and_what_is_left(profile):
    lines = profile.table()
    assert "| gate_up | 875.000 | 35.0% | 2.0 | 3.5% | 1 |" in lines
    assert "| head | 500.000 | 20.0% | - | 2.0% | 1 |" in lines
    assert profile.outside == pytest.approx(0.5)
    assert lines[-1] == "| outside | 125.000 | 5.0% | - | - | - |"


def test_the_bar_is_as_wide_as_the_times(profile):
    whole, parts, leaves = profile.bar(100)
    assert whole.startswith("|a token, 2500.00 ms-")
    for line in (whole, parts, leaves):
        assert len(line) == 101
    # Parts end where their last operation does.
    assert [i for i, c in enumerate(parts) if c == "|"] == [0, 24, 74, 94, 100]
    assert "attention 24%" in parts
    assert "gate_up 35%" in leaves
    assert leaves[24] == leaves[74] == leaves[94] == "|"


def test_an_operation_that_has_no_part_is_not_lost():
    profile = Profile(1, 1.0, (operation("new", 0.9),))
    assert "new 90%" in profile.bar(40)[2]
    assert profile.as_json()["operations"][0]["name"] == "new"
