from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitqwen.errors import ModelFileError, UsageError
from bitqwen.measure.statistics import wilson
from bitqwen.measure.tasks.results import ItemResult, TaskResult, outcomes, paired, read_outcomes


def result(*solved: bool) -> TaskResult:
    items = tuple(ItemResult(f"T/{i}", each, "x") for i, each in enumerate(solved))
    return TaskResult("quiz", "accuracy", items, 1.5, ("careful",))


def test_share() -> None:
    share = result(True, False, True, True).share
    assert share.value == 0.75
    assert (share.low, share.high) == wilson(0.75, 4)


def test_json_round_trip(tmp_path: Path) -> None:
    one = result(True, False, True)
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"tasks": [one.as_json()]}, allow_nan=False))
    assert read_outcomes(path) == {("quiz", "accuracy"): {"T/0": True, "T/1": False, "T/2": True}}
    assert read_outcomes(path)["quiz", "accuracy"] == outcomes(one)
    json.dumps(result(True).as_json(), allow_nan=False)


def test_pairing() -> None:
    found = paired(outcomes(result(True, True, False, True)), outcomes(result(True, False, False, False)))
    assert (found.only_model, found.only_reference, found.p_value) == (2, 0, 0.5)
    with pytest.raises(UsageError, match="only one has 'T/2'"):
        paired(outcomes(result(True, True)), outcomes(result(True, True, True)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"tasks": 3}',
        '{"tasks": [3]}',
        '{"tasks": [{"task": "x", "metric": "y"}]}',
        "[" * 100_000,
    ],
)
def test_files_that_are_no_report(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ModelFileError, match="no report"):
        read_outcomes(path)
    with pytest.raises(ModelFileError, match="Cannot read"):
        read_outcomes(tmp_path / "none")
