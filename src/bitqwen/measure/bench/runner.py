"""Runs all sides in turns: a noisy neighbour then hits each of them, and the machine's limits too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from bitqwen import _native
from bitqwen.engine import memory
from bitqwen.errors import UsageError
from bitqwen.measure import machine

from . import models, processes
from .plan import Side, Test, positions
from .profiles import Profile
from .results import Report, Row

# More than any last-level cache of one socket, and a pass of it takes some 20 ms.
_READ_BYTES = 512 << 20
# Short passes beside long tests: on a shared machine a single one is easily disturbed.
_PASSES = 4
_WARM_UP = 8

Progress = Callable[[str, int, int], None]


def run(
    sides: Sequence[Side],
    tests: Sequence[Test],
    *,
    repetitions: int = 5,
    read_bytes: int | None = None,
    profile: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measures every test on every side.

    All sides are opened at first and stay in memory. Each round runs each test once on every side, one
    after the other, and measures the machine's limits beside them.

    Args:
        sides: what to run.
        tests: what to run on each.
        repetitions: rounds.
        read_bytes: memory that a pass of the bandwidth measurement reads; by default 512 MB.
        profile: after the rounds, run each test once more on our own sides and time its operations.
        progress: called with what runs now, steps done and all steps.

    Raises:
        UsageError: nothing to run, or an engine that is not there.
        ResourceError: the sides do not fit into memory together.
        BitqwenError: a side failed.
    """
    if repetitions < 1 or not sides or not tests:
        raise UsageError("A benchmark needs a model, a test and at least one repetition.")
    ours = [side for side in sides if side.engine == "bitqwen"] if profile else []
    total = len(sides) * len(tests) * repetitions + len(sides) + len(ours) * len(tests)
    done = 0

    def step(what: str) -> None:
        nonlocal done
        if progress:
            progress(what, done, total)
        done += 1

    with contextlib.ExitStack() as stack:
        opened: list[processes.SideProcess] = []
        for side in sides:
            step(f"opening {side.label}")
            process = processes.start(side, positions(tests) + _WARM_UP)
            stack.callback(process.close)
            process.run(Test("pp", _WARM_UP))
            opened.append(process)
        wanted = read_bytes or min(_READ_BYTES, max(1 << 20, memory.available() // 4))
        peaks = {
            threads: _native.Peaks(threads, wanted) for threads in dict.fromkeys(s.threads for s in sides)
        }
        report = Report(machine.describe(), [], {t: [] for t in peaks}, {t: [] for t in peaks})
        about = {path: models.about(path) for path in dict.fromkeys(side.model for side in sides)}
        rows = {
            (side, test): Row(side, test, facts=process.facts, about=about[side.model])
            for side, process in zip(sides, opened, strict=True)
            for test in tests
        }
        for _ in range(repetitions):
            for test in tests:
                for threads, peak in peaks.items():
                    report.bandwidth[threads] += [peak.read_bandwidth() for _ in range(_PASSES)]
                    report.int8_rate[threads].append(peak.int8_rate())
                for side, process in zip(sides, opened, strict=True):
                    step(f"{test.name}: {side.label}")
                    answer = process.run(test)
                    rows[side, test].seconds.append(answer["seconds"])
                    if answer["joules"] is not None:
                        rows[side, test].joules.append(answer["joules"])
                        rows[side, test].least_joules = answer["least_joules"]
        processes_of = dict(zip(sides, opened, strict=True))
        for side in ours:
            for test in tests:
                step(f"operations of {test.name}: {side.label}")
                answer = processes_of[side].run(test, profile=True)
                rows[side, test].profile = Profile(
                    test.tokens, answer["seconds"], tuple(answer["operations"])
                )
    for row in rows.values():
        row.bandwidth = max(report.bandwidth[row.side.threads])
        row.int8_rate = max(report.int8_rate[row.side.threads]) if _same_isa(row.side) else 0.0
    report.rows = list(rows.values())
    if progress:
        progress("done", total, total)
    return report


def _same_isa(side: Side) -> bool:
    """Whether the peak of this process's instruction set is that of the side's."""
    return side.isa is None or side.isa == _native.isa_name()
