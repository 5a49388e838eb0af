"""The door between the event loops and the engine's thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from bitqwen.server.errors import overloaded

if TYPE_CHECKING:
    from bitqwen.server.reading import Reading
    from bitqwen.server.sequence import Job


class Mailbox:
    """A bounded queue that counts what waits on either side of it. Every method may be called by any thread.

    Args:
        limit: how much may wait.
        batch: sequences that are computed at once; tells how soon another try makes sense.
    """

    def __init__(self, limit: int, batch: int) -> None:
        self._limit = limit
        self._batch = batch
        self._changed = threading.Condition()
        self._arrived: list[Job | Reading] = []
        self._waiting = 0
        self._poked = False
        self.stopping = False

    @property
    def waiting(self) -> int:
        """How much was put and has not left."""
        return self._waiting

    @property
    def full(self) -> bool:
        """Whether as much waits as may."""
        return self._waiting >= self._limit

    def put(self, work: Job | Reading, free_slots: int) -> None:
        """Adds work.

        Args:
            work: a request.
            free_slots: places in the batch; what finds one at once need not wait.

        Raises:
            ApiError: 503, too much waits, or the server is stopping.
        """
        with self._changed:
            if self.stopping:
                raise overloaded("The server is shutting down.", 10)
            if self._waiting >= self._limit and (self._waiting or free_slots <= 0):
                raise overloaded(
                    f"The server is busy: {self._waiting} requests are waiting, which is as many as may.",
                    1 + self._waiting // self._batch,
                )
            self._waiting += 1
            self._arrived.append(work)
            self._changed.notify()

    def take(self) -> list[Job | Reading]:
        """What has arrived; it counts as waiting until :meth:`leave`."""
        with self._changed:
            arrived, self._arrived = self._arrived, []
            self._poked = False
            return arrived

    def leave(self) -> None:
        """Notes that one of those taken no longer waits."""
        with self._changed:
            self._waiting -= 1

    def poke(self) -> None:
        """Ends a wait: something has changed."""
        with self._changed:
            self._poked = True
            self._changed.notify()

    def stop(self) -> None:
        """Refuses whatever comes from now on."""
        with self._changed:
            self.stopping = True
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Waits until something arrives or changes since the last :meth:`take`, or the time is over."""
        with self._changed:
            if not self._arrived and not self._poked and not self.stopping:
                self._changed.wait(seconds)
