"""Runs one of our files and the peers' in turns, and gives a record of each pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitqwen.measure import bench

from .plan import Contest, Rival
from .weights import bytes_per_token

Record = dict[str, Any]


def measure(
    contest: Contest,
    rivals: Sequence[Rival],
    test: bench.Test,
    *,
    files: Path,
    programs: Mapping[str, Path],
    threads: int,
    rounds: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Record]:
    """One test of a contest against some of its rivals, all in turns; a record for each of them.

    Raises:
        BitqwenError: a side failed; what a program printed last is in the message.
    """
    ours = bench.Side("bitqwen", files / contest.ours, threads)
    theirs = [bench.Side(str(programs[rival.peer]), files / rival.file, threads) for rival in rivals]
    report = bench.run([ours, *theirs], [test], repetitions=rounds, progress=progress)
    first, *others = report.rows
    facts = {
        "contest": contest.name,
        "test": test.name,
        "kind": test.kind,
        "threads": threads,
        "machine": report.machine,
        "bandwidth": max(report.bandwidth[threads]),
        "int8_rate": max(report.int8_rate[threads]),
        "ours": _side(first) | {"bytes": first.bytes_per_token, "int8_share": first.int8_share},
    }
    return [
        facts
        | {
            "peer": rival.peer,
            "type": rival.type,
            "counts": rival.counts,
            "theirs": _side(row) | {"bytes": bytes_per_token(row.side.model)},
        }
        for rival, row in zip(rivals, others, strict=True)
    ]


def depth(contest: Contest, tokens: int, at: int, *, files: Path, threads: int, rounds: int) -> Record:
    """Our decode at a depth beside that at none, in turns."""
    tests = [bench.Test("tg", tokens), bench.Test("tg", tokens, at)]
    side = bench.Side("bitqwen", files / contest.ours, threads)
    report = bench.run([side], tests, repetitions=rounds)
    shallow, deep = report.rows
    return {
        "contest": contest.name,
        "test": tests[1].name,
        "kind": "depth",
        "threads": threads,
        "machine": report.machine,
        "bandwidth": max(report.bandwidth[threads]),
        "ours": _side(deep) | {"bytes": deep.bytes_per_token},
        "theirs": _side(shallow) | {"bytes": shallow.bytes_per_token},
        "peer": "bitqwen",
        "type": tests[0].name,
        "counts": True,
    }


def _side(row: bench.Row) -> Record:
    return {"file": row.side.model.name, "samples": row.speeds}
