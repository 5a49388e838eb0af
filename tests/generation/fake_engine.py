"""An engine whose next token is a function of the tokens so far: what text generation needs, and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bitqwen.engine import Screen


class FakeSession:
    def __init__(self, model: FakeModel) -> None:
        self.model = model
        self.closed = False
        self._tokens: list[int] = []

    @property
    def tokens(self) -> list[int]:
        return list(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def feed(
        self, ids: Sequence[int], *, logits: str = "last", screen: Screen | None = None
    ) -> NDArray[np.float32]:
        assert ids, "the engine refuses an empty feed"
        assert not self.closed
        assert len(self._tokens) + len(ids) <= self.model.context, "the context would overflow"
        if self.model.interrupt_at is not None and len(self._tokens) + len(ids) > self.model.interrupt_at:
            self.model.interrupt_at = None
            raise KeyboardInterrupt
        self.model.fed.append(list(ids))
        self._tokens += ids
        row = self.model.logits_after(self._tokens)
        self.model.screens.append(screen)
        if screen is not None:
            counted = row.copy()
            counted[np.asarray(screen.lowered, dtype=int)] = -np.inf
            if screen.rows is not None:
                counted[screen.rows :] = -np.inf
            if screen.top is not None:
                row[row < np.sort(counted)[-screen.top]] = -np.inf
            if screen.margin is not None:
                row[row < counted.max() - screen.margin] = -np.inf
        return row

    def truncate(self, length: int) -> None:
        assert 0 <= length <= len(self._tokens)
        del self._tokens[length:]

    def close(self) -> None:
        self.closed = True


class FakeModel:
    """Says what ``rule`` tells it to.

    Attributes:
        fed: the ids of every call of feed, in order.
        sessions: every session ever made.
        screened: whether a screen has an effect.
        screens: those of every call of feed.
        interrupt_at: the position at which the next feed is interrupted.
    """

    def __init__(
        self, vocab_size: int, rule: Callable[[list[int]], int], context: int = 64, screened: bool = False
    ) -> None:
        self.vocab_size = vocab_size
        self.rule = rule
        self.context = context
        self.screened = screened
        self.screens: list[Screen | None] = []
        self.fed: list[list[int]] = []
        self.sessions: list[FakeSession] = []
        self.interrupt_at: int | None = None

    def session(self) -> FakeSession:
        self.sessions.append(FakeSession(self))
        return self.sessions[-1]

    def logits_after(self, tokens: list[int]) -> NDArray[np.float32]:
        # Noise that depends on the tokens alone: the same place gives the same logits in any session.
        row = np.random.default_rng(tokens).normal(size=self.vocab_size).astype(np.float32)
        row[self.rule(tokens)] += 12
        return row

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return np.stack([self.logits_after(list(ids[: end + 1])) for end in range(len(ids))])


def script(answer: Sequence[int], end: int, prompt: int) -> Callable[[list[int]], int]:
    """A rule: after a prompt of ``prompt`` ids, ``answer``, then ``end``."""

    def rule(tokens: list[int]) -> int:
        place = len(tokens) - prompt
        return answer[place] if 0 <= place < len(answer) else end

    return rule
