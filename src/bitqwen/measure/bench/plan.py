"""What a benchmark runs: tests (prefill or decode, at a depth) on sides (a model and how it is run)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bitqwen.errors import UsageError

Kind = Literal["pp", "tg"]


@dataclass(frozen=True)
class Test:
    """``tokens`` of prefill at once (pp) or decoded one by one (tg), after ``depth`` tokens of context."""

    __test__ = False  # not one of pytest's

    kind: Kind
    tokens: int
    depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench writes it: ``pp512``, ``tg128 @ d4096``."""
        return f"{self.kind}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Side:
    """One way to run one model.

    Attributes:
        engine: "bitqwen", "llama-cpp-python", or the path of a llama-bench program.
        model: the GGUF file.
        threads: of the engine.
        isa: instruction set that is forced; None for the best.
        kv: the KV cache's type.
        peer: whether it is there to be compared with.
        exact_head: compute all logits of a decoded token, not those alone that a greedy choice needs.
        numa: place threads and weights on the machine's memory nodes.
    """

    engine: str
    model: Path
    threads: int
    isa: str | None = None
    kv: str = "f16"
    peer: bool = False
    exact_head: bool = False
    numa: bool = False

    @property
    def label(self) -> str:
        """For progress bars and messages."""
        parts = [self.engine, self.model.stem, f"{self.threads} threads", self.isa or "", self.kv]
        return ", ".join(part for part in parts if part)


def tests(prompt: Iterable[int], generate: Iterable[int], depths: Iterable[int]) -> list[Test]:
    """The tests of each depth: prefill first, then decode; zero tokens mean no such test.

    Raises:
        UsageError: a negative number, or no test at all.
    """
    prompt, generate, depths = list(prompt), list(generate), list(depths) or [0]
    if any(number < 0 for number in (*prompt, *generate, *depths)):
        raise UsageError("Tokens and depths cannot be negative.")
    kinds: tuple[tuple[Kind, list[int]], ...] = (("pp", prompt), ("tg", generate))
    found = [
        Test(kind, tokens, depth) for depth in depths for kind, counts in kinds for tokens in counts if tokens
    ]
    if not found:
        raise UsageError(
            "There is nothing to measure.", hint="Give -p, -n or both, for example -p 512 -n 128."
        )
    return list(dict.fromkeys(found))


def positions(chosen: Iterable[Test]) -> int:
    """The context that all tests fit into."""
    return max(test.depth + test.tokens for test in chosen)
