"""Prompts that are only read: embeddings, and log-probabilities of a given text."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitqwen.engine import Model, Session

Take = Callable[[int, "NDArray[np.float32]"], None]


class Reading:
    """One text on its way through the model, a chunk at a time.

    Attributes:
        deadline: on ``time.monotonic``'s clock.
        seconds: the time limit behind it.

    Args:
        ids: the text's tokens.
        take: called on the engine's thread with each chunk's first position and its rows.
        hidden: rows are hidden states, [chunk, hidden_size], instead of logits, [chunk, vocabulary].
        seconds: time limit.
    """

    def __init__(self, ids: Sequence[int], take: Take, *, hidden: bool, seconds: float) -> None:
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self._ids = list(ids)
        self._take = take
        self._hidden = hidden
        self._session: Session | None = None
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._cancelled = threading.Event()

    @property
    def started(self) -> bool:
        """Whether it holds memory."""
        return self._session is not None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._cancelled.is_set()

    async def wait(self) -> None:
        """Waits until all chunks were taken; whoever stops waiting cancels it."""
        try:
            await self._done
        finally:
            self._cancelled.set()

    def advance(self, model: Model, limit: int) -> int:
        """Reads the next chunk, on the engine's thread; returns its length, 0 when all is read.

        Args:
            model: the engine.
            limit: tokens of the chunk, at most.

        Raises:
            ResourceError: the KV cache is full; nothing has changed.
        """
        if self._session is None:
            self._session = model.session()
        start = len(self._session)
        chunk = self._ids[start : start + limit]
        if chunk:
            rows = self._session.hidden(chunk) if self._hidden else self._session.feed(chunk, logits="all")
            if rows is not None:
                self._take(start, rows)
        return len(chunk)

    def end(self, error: BaseException | None = None) -> None:
        """Frees its memory and wakes whoever waits."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
        try:
            self._loop.call_soon_threadsafe(self._resolve, error)
        except RuntimeError:  # the loop was closed: nobody waits
            self._cancelled.set()

    def _resolve(self, error: BaseException | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
