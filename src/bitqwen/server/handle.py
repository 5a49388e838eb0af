"""The client's end of a request in the scheduler: pieces from the engine's thread to an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from bitqwen.server.requests import Delta, Usage


class GenerationHandle(AsyncIterator[Delta]):
    """Deltas of all choices, in the order in which the engine makes them.

    Use it with ``async with``: leaving the block early cancels the request. Iteration ends after each
    choice had its finish reason, and raises what made the engine give up.

    Attributes:
        usage: counts and times so far.
    """

    def __init__(self, usage: Usage, on_cancel: Callable[[], None], on_read: Callable[[int], None]) -> None:
        self.usage = usage
        self.loop = asyncio.get_running_loop()
        self._on_cancel = on_cancel
        self._on_read = on_read
        self._items: deque[Delta | BaseException | None] = deque()
        self._arrived = asyncio.Event()
        self._delivered = 0  # counted by the engine's thread
        self._read = 0  # counted by the event loop
        self._over = False

    @property
    def backlog(self) -> int:
        """Deltas made that were not read yet; any thread may ask."""
        return self._delivered - self._read

    def __aiter__(self) -> GenerationHandle:
        return self

    async def __anext__(self) -> Delta:
        while not self._items:
            if self._over:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        item = self._items.popleft()
        if isinstance(item, Delta):
            self._read += 1
            self._on_read(self.backlog)
            return item
        self._over = True
        if item is None:
            raise StopAsyncIteration
        raise item

    async def __aenter__(self) -> GenerationHandle:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stops the request within one step and frees its memory; harmless after its end."""
        if not self._over:
            self._over = True
            self._on_cancel()

    def count(self) -> None:
        """Notes, on the engine's thread, a delta that :meth:`put` will bring."""
        self._delivered += 1

    def put(self, items: list[Delta | BaseException | None]) -> None:
        """Takes what a step made; ``None`` is the end. Called on the event loop."""
        self._items.extend(items)
        self._arrived.set()
