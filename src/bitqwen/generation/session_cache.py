"""Keeps the last conversation's KV cache, so that a prompt that starts like it is not read again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitqwen.engine import Model, Session


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    shared = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        shared += 1
    return shared


class SessionCache:
    """Lends one session at a time to each generation.

    One idle session is kept. Generations that overlap get sessions of their own, and of those that end,
    the latest is kept: memory stays that of the sessions in use, or of one.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._idle: Session | None = None
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, ids: Sequence[int]) -> Iterator[Session]:
        """A session whose tokens are a proper prefix of ``ids``, as long as there is one.

        At least the last id is left to feed, because its logits are what the caller is after.
        """
        with self._lock:
            session, self._idle = self._idle, None
        if session is None:
            session = self._model.session()
        try:
            session.truncate(min(common_prefix(session.tokens, ids), len(ids) - 1))
            yield session
        finally:
            # Whatever went wrong, a session holds what it says it holds.
            self._give_back(session)

    def _give_back(self, session: Session) -> None:
        with self._lock:
            stale, self._idle = (session, None) if self._closed else (self._idle, session)
        if stale is not None:
            stale.close()

    def close(self) -> None:
        """Frees the idle session, and those lent out as they come back."""
        with self._lock:
            stale, self._idle = self._idle, None
            self._closed = True
        if stale is not None:
            stale.close()
