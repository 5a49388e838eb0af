"""One side of a benchmark in a process of its own: instruction sets, threads and peers do not mix in one.

Reads commands as JSON, one a line, from stdin, and answers each with one line on the stdout it was given.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

from bitqwen.errors import BitqwenError
from bitqwen.measure.energy import EnergyMeter

from .peers import IkLlamaCpp, LlamaCpp

if TYPE_CHECKING:
    from bitqwen.engine.cache import KvType

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

    def __init__(
        self, model: str, threads: int, context: int, kv: str, exact_head: bool = False, numa: bool = False
    ) -> None:
        from bitqwen.engine import Model, Screen

        self.kv = cast("KvType", kv)  # refused below if it is none
        self.model = Model.open(
            model, threads=threads, context=context, kv=self.kv, exact_head=exact_head or None, numa=numa
        )
        self.screen = Screen(top=1)  # as `run --temp 0` does
        self.session = self.model.session()
        self.vocab_size = self.model.vocab_size

    def facts(self) -> dict[str, Any]:
        """Instruction set, bytes of weights a token, bytes of KV cache a position, multiply-adds a token."""
        from bitqwen import _native
        from bitqwen.engine import memory

        config = self.model.config

        def cache(context: int) -> int:
            return memory.estimate(config, weights=0, context=context, kv=self.kv)["cache"]

        body = sum(math.prod(spec.shape) for spec in config.tensors() if spec.role == "matrix")
        return {
            "isa": _native.isa_name(),
            "decode_bytes": self.model.greedy_bytes,
            "head": "screened" if self.model.screened else "exact",
            "placement": self.model.placement,
            "kv_bytes": (cache(8192) - cache(4096)) / 4096,
            "body_macs": body,
            "decode_macs": body + config.vocab_size * config.hidden_size,
            "version": _version(),
        }

    def feed(self, ids: list[int]) -> None:
        """Computes ids after those in the context."""
        self.session.feed(ids, screen=self.screen)

    def truncate(self, length: int) -> None:
        """Forgets what comes after ``length`` tokens."""
        self.session.truncate(length)


ENGINES: dict[str, Callable[..., Engine]] = {
    "bitqwen": Bitqwen,
    "llama-cpp-python": LlamaCpp,
    "ik-llama-cpp-python": IkLlamaCpp,
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

    def run(self, kind: str, tokens: int, depth: int, profile: bool = False) -> dict[str, Any]:
        """One repetition: wall seconds; joules where they can be read, and the least that mean something.

        With ``profile``, which only our own engine knows, also its operations.
        """
        if self.filled < depth:
            self.engine.truncate(self.filled)
            self.engine.feed(self._ids(depth - self.filled))
        self.filled = depth
        self.engine.truncate(depth)
        ids = self._ids(tokens)
        steps = [ids] if kind == "pp" else [[each] for each in ids]
        measured = self.engine.model.profile() if profile and isinstance(self.engine, Bitqwen) else None
        before = self.energy.read()
        with measured or contextlib.nullcontext():
            start = time.perf_counter()
            for step in steps:
                self.engine.feed(step)
            seconds = time.perf_counter() - start
        joules = self.energy.joules(before, self.energy.read())
        return {
            "seconds": seconds,
            "joules": joules,
            "least_joules": self.energy.smallest,
            "operations": [vars(operation) for operation in measured.operations] if measured else [],
        }


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
                answer(engine.facts() | {"energy": bench.energy.kind, "energy_reason": bench.energy.reason})
            else:
                answer(bench.run(**command))
        except BitqwenError as error:
            answer({"error": error.message, "hint": error.hint, "class": type(error).__name__})
    return 0
