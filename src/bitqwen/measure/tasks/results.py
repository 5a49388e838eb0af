"""What became of a task's items, and two models on the same ones."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bitqwen.errors import ModelFileError, UsageError
from bitqwen.measure.statistics import Estimate, McNemar, mcnemar, wilson

_MAX_REPORT_BYTES = 256 << 20


@dataclass(frozen=True)
class ItemResult:
    """One item.

    Attributes:
        id: the item's own, or its place in the file.
        solved: whether the model did.
        answer: what it said, or the number of its choice.
        remark: why it counts as not solved, where that is not plain.
    """

    id: str
    solved: bool
    answer: str = ""
    remark: str = ""


@dataclass(frozen=True)
class TaskResult:
    """A task's items, and the share of them that was solved.

    Attributes:
        task: its name.
        metric: what the share is called: accuracy, exact match, pass@1.
        items: in the task's order.
        seconds: how long it took.
        warnings: what the reader of the figure should know.
        tokens: that the model wrote; 0 where it chose instead.
        writing_seconds: how long that took, the prompts' reading included.
    """

    task: str
    metric: str
    items: tuple[ItemResult, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    tokens: int = 0
    writing_seconds: float = 0.0

    @property
    def share(self) -> Estimate:
        """The share of items solved, with Wilson's 95 % confidence interval."""
        count = len(self.items)
        value = sum(item.solved for item in self.items) / count
        error = math.sqrt(value * (1 - value) / (count - 1)) if count > 1 else math.inf
        return Estimate(value, error, *wilson(value, count))

    def as_json(self) -> dict[str, Any]:
        """In JSON's types."""
        share = {name: value for name, value in vars(self.share).items() if math.isfinite(value)}
        return {
            "task": self.task,
            "metric": self.metric,
            "count": len(self.items),
            "solved": sum(item.solved for item in self.items),
            "share": share,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "writing_seconds": self.writing_seconds,
            "warnings": list(self.warnings),
            "items": [dataclasses.asdict(item) for item in self.items],
        }


def paired(model: Mapping[str, bool], reference: Mapping[str, bool]) -> McNemar:
    """McNemar's exact test on two models' outcomes by item id.

    Raises:
        UsageError: the two did not see the same items.
    """
    if model.keys() != reference.keys():
        odd = min(model.keys() ^ reference.keys())
        raise UsageError(
            f"The two results are not of the same items: only one has {odd!r}.",
            hint="Run both with the same task file and the same --limit.",
        )
    ids = list(model)
    return mcnemar(
        np.array([model[each] for each in ids], np.bool_),
        np.array([reference[each] for each in ids], np.bool_),
    )


def outcomes(result: TaskResult) -> dict[str, bool]:
    """Whether each item was solved, by its id."""
    return {item.id: item.solved for item in result.items}


def read_outcomes(path: Path) -> dict[tuple[str, str], dict[str, bool]]:
    """The outcomes in a report of ``bitqwen eval``: (task, metric) -> item id -> solved.

    Raises:
        ModelFileError: it cannot be read, or is no such report.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_REPORT_BYTES + 1)
        if len(data) > _MAX_REPORT_BYTES:
            raise ModelFileError(f"{path} is larger than {_MAX_REPORT_BYTES >> 20} MB.")
        report = json.loads(data)
        tasks: Sequence[Any] = report["tasks"]
        found = {}
        for task in tasks:
            items = {str(item["id"]): bool(item["solved"]) for item in task["items"]}
            found[str(task["task"]), str(task["metric"])] = items
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{path} is no report of a task.", hint="Make one with `bitqwen eval MODEL --task ... -o FILE`."
        ) from error
    return found
