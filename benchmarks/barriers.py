"""What opening, sharing out and closing a loop of the thread pool costs, and what share of a token that is.

Runs `barrier_benchmark` (CMake option BITQWEN_BENCHMARKS). With a model, also counts the loops of a decoded
token that are shared out, and lets each number of threads decode in turns: more threads than cores included.

    python benchmarks/barriers.py build/dev/benchmarks/native/barrier_benchmark qwen.gguf --save results.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine

from bitqwen.engine import Model, Screen

DEFAULT_THREADS = "1,2,4,8"
TOKENS = 16  # decoded in a turn
GREEDY = Screen(top=1)


def loops(program: Path, threads: str, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of each kind of loop, [best, median], for each number of threads.

    Raises:
        RuntimeError: the program fails.
    """
    command = [str(program), "--threads", threads, "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def barriers(model: Model) -> int:
    """Loops of one decoded token that several threads share."""
    with model.session() as session:
        session.feed([42])
        with model.profile() as profile:
            session.feed([43], screen=GREEDY)
    return sum(operation.barriers for operation in profile.operations)


def decode(path: Path, threads: Sequence[int], rounds: int) -> dict[str, Any]:
    """Barriers of a token, and milliseconds of one with each number of threads, of the quickest turn."""
    models = {count: Model.open(path, threads=count, context=256) for count in threads}
    best = dict.fromkeys(threads, float("inf"))
    for _ in range(rounds):
        for count, model in models.items():
            with model.session() as session:
                session.feed([42], screen=GREEDY)
                start = time.perf_counter()
                for token in range(TOKENS):
                    session.feed([token], screen=GREEDY)
                best[count] = min(best[count], 1000 * (time.perf_counter() - start) / TOKENS)
    shared = next((barriers(model) for count, model in models.items() if count > 1), 0)
    return {"model": path.name, "barriers": shared, "token_ms": {str(n): ms for n, ms in best.items()}}


def table(measured: Sequence[dict[str, Any]], decoded: dict[str, Any] | None) -> str:
    """Markdown: a line for each number of threads; quickest and median microseconds."""
    lines = ["| threads | joined, us | beyond the work, us | woken, us |", "|---|---|---|---|"]
    if decoded:
        lines = [
            lines[0] + f" {decoded['barriers']} of them, ms | a token, ms | share |",
            lines[1] + "---|---|---|",
        ]
    for row in measured:
        cells = [str(row["threads"])]
        for name in ("joined_us", "working_us", "woken_us"):
            cells.append("{:.2f}, {:.2f}".format(*row[name]) if name in row else "")
        if decoded:
            cost = decoded["barriers"] * row["working_us"][1] / 1000 if row["threads"] > 1 else 0.0
            token = decoded["token_ms"][str(row["threads"])]
            cells += [f"{cost:.2f}", f"{token:.2f}", f"{cost / token:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", type=Path, help="barrier_benchmark")
    parser.add_argument("model", type=Path, nargs="?", help="a GGUF file")
    parser.add_argument("--threads", default=DEFAULT_THREADS, metavar="N,...")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    if not options.program.is_file():
        parser.error(f"{options.program} is no file: build it with -DBITQWEN_BENCHMARKS=ON")
    try:
        measured = loops(options.program, options.threads, options.rounds)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    counts = [row["threads"] for row in measured]
    decoded = decode(options.model, counts, options.rounds) if options.model else None
    print("\n".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print()
    print(table(measured, decoded))
    if options.save:
        machine.save(options.save, "barriers", {"loops": measured, "decode": decoded})
    return 0


if __name__ == "__main__":
    sys.exit(main())
