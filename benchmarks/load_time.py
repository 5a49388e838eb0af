"""What opening a model takes from the page cache, and what a file of packed weights could save of it.

Each round opens the file in turns with what no packed file could do without: reading as many bytes into fresh
memory with as many threads. The difference, without the vocabulary, is the most that it could save: checking
and repacking. Rounds take turns and the best counts; processor time of the system is mostly page faults.

    python benchmarks/load_time.py qwen.gguf --save results.json
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import machine

from bitqwen import _native
from bitqwen.engine import Model
from bitqwen.generation.language_model import LanguageModel
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import GGUFFile

PIECE = 32 << 20


def read_all(path: Path, threads: int) -> None:
    """The whole file into anonymous memory, in huge pages where the system gives them."""
    size = path.stat().st_size
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has no huge pages
    with mmap.mmap(-1, size, flags=private) as memory, path.open("rb", buffering=0) as file:
        memory.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(memory)

        def read(begin: int) -> None:
            end = min(begin + PIECE, size)
            while begin < end:
                begin += os.preadv(file.fileno(), [view[begin:end]], begin)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, range(0, size, PIECE)))
        view.release()


def measure(what: Callable[[], object]) -> dict[str, float]:
    """Seconds by the clock, of the processor for the program and for the system, and page faults."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    made = what()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    del made
    return {
        "seconds": seconds,
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
    }


def rounds(path: Path, threads: int, count: int) -> dict[str, dict[str, float]]:
    """The quickest of each step."""
    metadata = GGUFFile(path).metadata
    steps: dict[str, Callable[[], object]] = {
        "read into memory": lambda: read_all(path, threads),
        "open without a screen": lambda: Model.open(path, threads=threads, exact_head=True),
        "open": lambda: Model.open(path, threads=threads),
        "vocabulary": lambda: Tokenizer.from_gguf(metadata),
        "all, as bitqwen.load": lambda: LanguageModel.load(path, threads=threads),
    }
    best: dict[str, dict[str, float]] = {}
    read_all(path, threads)  # into the page cache
    for _ in range(count):
        for name, step in steps.items():
            found = measure(step)
            if name not in best or found["seconds"] < best[name]["seconds"]:
                best[name] = found
    return best


def most_saved(best: dict[str, dict[str, float]]) -> float:
    """Seconds that a packed file could save at most."""
    return best["open"]["seconds"] - best["read into memory"]["seconds"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--threads", type=int, default=_native.available_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    best = rounds(options.model, options.threads, options.rounds)
    print("\n".join(f"{name}: {value}" for name, value in machine.describe().items()))
    print(f"{options.model.name}, {options.model.stat().st_size / 1e6:.0f} MB, {options.threads} threads")
    print()
    print("| | s | user s | system s | page faults |")
    print("|---|---|---|---|---|")
    for name, found in best.items():
        numbers = (
            f"{found['seconds']:.2f} | {found['user']:.2f} | {found['system']:.2f} | {found['faults']:.0f}"
        )
        print(f"| {name} | {numbers} |")
    print()
    print(f"The most that a packed file could save: {most_saved(best):.2f} s.")
    if options.save:
        results: dict[str, Any] = {"model": options.model.name, "threads": options.threads, "steps": best}
        machine.save(options.save, "load_time", results)


if __name__ == "__main__":
    main()
