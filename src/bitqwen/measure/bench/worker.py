"""One side of a benchmark in a process of its own: instruction sets, threads and peers do not mix in one.

Reads commands as JSON, one a line, from stdin, and answers each with one line on the stdout it was given.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from bitqwen.errors import BitqwenError
from bitqwen.measure.energy import EnergyMeter

# Ids below every control token of any Qwen vocabulary that is not tiny.
_FIRST_ID, _LAST_ID = 1000, 100_000


class Engine(Protocol):
    """What the tests need of an engine."""

    vocab_size: int

    def facts(self) -> dict[str, Any]:
        """What only the engine knows: bytes it moves, what it computes with."""
        ...

    def feed(self, ids: list[int]) -> None:
        """Computes ids after those in the context, logits of the last one included."""
        ...

    def truncate(self, length: int) -> None:
        """Forgets what comes after ``length`` tokens."""
        ...


class Bitqwen:
    """This package's own engine."""

    def __init__(self, model: str, threads: int, context: int, kv: str) -> None:
        from bitqwen.engine import Model

        self.kv: Literal["f16", "int8"] = "int8" if kv == "int8" else "f16"
        self.model = Model.open(model, threads=threads, context=context, kv=self.kv)
        self.session = self.model.session()
        self.vocab_size = self.model.vocab_size

    def facts(self) -> dict[str, Any]:
        """Instruction set, bytes of weights a token, bytes of KV cache a position, multiply-adds a token."""
        from bitqwen import _native
        from bitqwen.engine import memory

        config = self.model.config

        def cache(context: int) -> int:
            return memory.estimate(config, weights=0, context=context, kv=self.kv)["cache"]

        matrices = [spec.shape for spec in config.tensors() if spec.role == "matrix"]
        return {
            "isa": _native.isa_name(),
            "decode_bytes": self.model.decode_bytes,
            "kv_bytes": (cache(8192) - cache(4096)) / 4096,
            "body_macs": sum(rows * cols for rows, cols in matrices),
            "version": _version(),
        }

    def feed(self, ids: list[int]) -> None:
        """Computes ids after those in the context."""
        self.session.feed(ids)

    def truncate(self, length: int) -> None:
        """Forgets what comes after ``length`` tokens."""
        self.session.truncate(length)


class LlamaCpp:
    """llama.cpp inside llama-cpp-python, through its low-level evaluation."""

    def __init__(self, model: str, threads: int, context: int, kv: str) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise BitqwenError(
                "llama-cpp-python is not installed.", hint="pip install llama-cpp-python"
            ) from error
        self.module = llama_cpp
        cache_type = llama_cpp.GGML_TYPE_Q8_0 if kv == "int8" else None
        self.model = llama_cpp.Llama(
            model,
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            n_batch=512,
            flash_attn=kv == "int8",  # it needs that for a quantised cache
            verbose=False,
            type_k=cache_type,
            type_v=cache_type,
        )
        self.vocab_size = self.model.n_vocab()

    def facts(self) -> dict[str, Any]:
        """Its version and what it was compiled for."""
        info = self.module.llama_print_system_info().decode().strip()
        return {"version": self.module.__version__, "system_info": info}

    def feed(self, ids: list[int]) -> None:
        """Computes ids after those in the context."""
        self.model.eval(ids)

    def truncate(self, length: int) -> None:
        """Forgets what comes after ``length`` tokens."""
        self.model.n_tokens = length


ENGINES: dict[str, Callable[..., Engine]] = {
    "bitqwen": Bitqwen,
    "llama-cpp-python": LlamaCpp,
}


class Bench:
    """Runs tests on an engine; the context up to the wanted depth is kept from test to test."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.energy = EnergyMeter()
        self.filled = 0
        self._random = random.Random(0)
        self._last = min(_LAST_ID, engine.vocab_size)
        self._first = min(_FIRST_ID, self._last // 2)

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(self._first, self._last) for _ in range(count)]

    def run(self, kind: str, tokens: int, depth: int) -> dict[str, Any]:
        """One repetition: wall seconds, and joules where they can be read."""
        if self.filled < depth:
            self.engine.truncate(self.filled)
            self.engine.feed(self._ids(depth - self.filled))
        self.filled = depth
        self.engine.truncate(depth)
        ids = self._ids(tokens)
        before = self.energy.read()
        start = time.perf_counter()
        if kind == "pp":
            self.engine.feed(ids)
        else:
            for each in ids:
                self.engine.feed([each])
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "joules": self.energy.joules(before, self.energy.read())}


def _version() -> str:
    from bitqwen import __version__

    return __version__


def main() -> int:
    """Opens the engine that the first line asks for, then runs one test a line until stdin ends."""
    # Whatever an engine prints goes to stderr: stdout carries answers alone.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    bench: Bench | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if bench is None:
                engine = ENGINES[command.pop("engine")](**command)
                bench = Bench(engine)
                answer(engine.facts() | {"energy_reason": bench.energy.reason})
            else:
                answer(bench.run(**command))
        except BitqwenError as error:
            answer({"error": error.message, "hint": error.hint, "class": type(error).__name__})
    return 0
