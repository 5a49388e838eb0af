"""The models in memory: loaded on first use, unloaded when idle, within a budget.

Everything here runs on the event loop; loading and freeing happen on threads beside it, one at a time, while
the models that are loaded go on answering.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bitqwen.errors import BitqwenError, ResourceError
from bitqwen.server.errors import ApiError, overloaded
from bitqwen.server.served_model import ServedModel, in_thread

if TYPE_CHECKING:
    from bitqwen.server.catalog import Offer

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 5


class Resident:
    """A model in memory or on its way there.

    Attributes:
        offer: which.
        served: it, once it is loaded.
        loading: until then.
        users: requests that work with it or wait for it.
        idle_since: when the last one left, on ``time.monotonic``'s clock.
        bytes: what it takes, first as estimated.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.served: ServedModel | None = None
        self.loading: asyncio.Task[ServedModel] | None = None
        self.users = 0
        self.idle_since = time.monotonic()
        self.bytes = 0

    @property
    def idle(self) -> bool:
        """Whether it may be unloaded."""
        return self.served is not None and self.users == 0 and not self.offer.pinned


class Residents:
    """Who is in memory.

    Attributes:
        on_load: called with each model that was loaded, and the seconds it took.

    Args:
        load: loads a model, on a thread.
        estimate: bytes that loading one will take; on a thread.
        budget: bytes that all together may take; ``None`` if only what the machine has limits them.
        keep_alive: seconds for which an idle model stays; ``None`` for ever.
    """

    def __init__(
        self,
        load: Callable[[Offer], ServedModel],
        estimate: Callable[[Offer], int],
        budget: int | None,
        keep_alive: float | None,
    ) -> None:
        self._load = load
        self._estimate = estimate
        self._budget = budget
        self._keep_alive = keep_alive
        self._by_name: dict[str, Resident] = {}
        self._one_at_a_time = asyncio.Lock()
        self._left = asyncio.Event()  # a user left: something may have become idle
        self.on_load: Callable[[ServedModel, float], None] = lambda served, seconds: None

    def add(self, offer: Offer, served: ServedModel) -> None:
        """Takes over a model that is loaded already."""
        resident = self._by_name[offer.name] = Resident(offer)
        resident.served = served
        resident.bytes = sum(served.language_model.model.memory.values())

    def loaded(self) -> list[ServedModel]:
        """Those that are in memory."""
        return [resident.served for resident in list(self._by_name.values()) if resident.served is not None]

    def offers(self) -> list[Offer]:
        """What those in memory or on their way were offered as."""
        return [resident.offer for resident in self._by_name.values()]

    def state(self, name: str) -> str:
        """One word: unloaded, loading or loaded."""
        resident = self._by_name.get(name)
        if resident is None:
            return "unloaded"
        return "loading" if resident.served is None else "loaded"

    def find(self, name: str) -> ServedModel | None:
        """A model that is in memory, by its own name."""
        resident = self._by_name.get(name)
        return None if resident is None else resident.served

    async def lease(self, offer: Offer) -> ServedModel:
        """A model for one user, loaded if it is not; :meth:`release` gives it back.

        Whoever stops waiting leaves the load to the others, and if there are none, to the next one.

        Raises:
            ApiError: 503, there is no room for it, or it cannot be loaded.
        """
        resident = self._by_name.get(offer.name)
        if resident is None:
            resident = self._by_name[offer.name] = Resident(offer)
            resident.loading = asyncio.create_task(self._bring_in(resident))
            resident.loading.add_done_callback(_look_at)
        resident.users += 1
        try:
            if resident.served is not None:
                return resident.served
            assert resident.loading is not None
            return await asyncio.shield(resident.loading)
        except BaseException:
            self._leave(resident)
            raise

    def release(self, served: ServedModel) -> None:
        """Gives a leased model back."""
        for resident in self._by_name.values():
            if resident.served is served:
                self._leave(resident)

    async def unload_idle(self) -> None:
        """Unloads what has been idle for long enough; ends only when it is cancelled."""
        while True:
            self._left.clear()
            due = [
                resident.idle_since + self._keep_alive
                for resident in self._by_name.values()
                if resident.idle and self._keep_alive is not None
            ]
            wait = max(0.0, min(due) - time.monotonic()) if due else None
            try:
                await asyncio.wait_for(self._left.wait(), wait)
            except asyncio.TimeoutError:  # another class before Python 3.11
                async with self._one_at_a_time:
                    for resident in list(self._by_name.values()):
                        since = time.monotonic() - resident.idle_since
                        if resident.idle and self._keep_alive is not None and since >= self._keep_alive:
                            await self._unload(resident)

    async def close(self) -> None:
        """Waits for what is being loaded, ends all requests and frees everything."""
        loading = [one.loading for one in self._by_name.values() if one.loading is not None]
        await asyncio.gather(*loading, return_exceptions=True)
        for resident in list(self._by_name.values()):
            await self._unload(resident)

    def _leave(self, resident: Resident) -> None:
        resident.users -= 1
        resident.idle_since = time.monotonic()
        self._left.set()

    async def _bring_in(self, resident: Resident) -> ServedModel:
        offer = resident.offer
        try:
            async with self._one_at_a_time:
                started = time.monotonic()
                if self._budget is not None:
                    needed = await in_thread(self._estimate, offer)
                    await self._make_room(offer, needed, self._budget)
                    resident.bytes = needed
                served = await self._load_or_make_room(offer)
        except BaseException as error:
            del self._by_name[offer.name]
            if isinstance(error, ApiError) or offer.pinned:
                raise
            logger.warning("the model %s could not be loaded: %s", offer.name, error, exc_info=error)
            if isinstance(error, ResourceError):
                raise overloaded(
                    f"There is too little memory for '{offer.name}' now.", _RETRY_SECONDS
                ) from error
            if isinstance(error, (BitqwenError, OSError)):
                raise ApiError(
                    503,
                    f"The model '{offer.name}' cannot be loaded; the server's log says why.",
                    code="model_load_failed",
                ) from error
            raise
        resident.bytes = sum(served.language_model.model.memory.values())
        resident.served, resident.loading = served, None
        seconds = time.monotonic() - started
        logger.info(
            {"event": "loaded", "model": offer.name, "bytes": resident.bytes, "seconds": round(seconds, 3)}
        )
        self.on_load(served, seconds)
        self._left.set()
        return served

    async def _load_or_make_room(self, offer: Offer) -> ServedModel:
        """Loads; where the machine itself has too little memory, idle models give way."""
        while True:
            try:
                return await in_thread(self._load, offer)
            except ResourceError:
                if offer.pinned or not await self._unload_longest_idle():
                    raise

    async def _make_room(self, offer: Offer, needed: int, budget: int) -> None:
        """Unloads idle models, those first that have been idle for longest; none if that is not enough."""
        while True:
            others = [resident for resident in self._by_name.values() if resident.offer is not offer]
            busy = [resident for resident in others if resident.served is not None and not resident.idle]
            taken = sum(resident.bytes for resident in busy)
            if taken + needed > budget:
                names = ", ".join(resident.offer.name for resident in busy) or "no other"
                raise ApiError(
                    503,
                    f"The model '{offer.name}' needs {_gigabytes(needed)}; the budget of all models is "
                    f"{_gigabytes(budget)}, of which {_gigabytes(taken)} are in use by {names}.",
                    code="out_of_memory",
                    headers={"retry-after": str(_RETRY_SECONDS)} if busy else {},
                )
            if sum(resident.bytes for resident in others if resident.served is not None) + needed <= budget:
                return
            await self._unload_longest_idle()

    async def _unload_longest_idle(self) -> bool:
        idle = [resident for resident in self._by_name.values() if resident.idle]
        if not idle:
            return False
        await self._unload(min(idle, key=lambda resident: resident.idle_since))
        return True

    async def _unload(self, resident: Resident) -> None:
        served, resident.served = resident.served, None
        self._by_name.pop(resident.offer.name, None)
        if served is not None:
            await in_thread(served.close)
            # The engine goes with its last reference, and ended requests and their scheduler are a circle.
            del served
            await in_thread(gc.collect)
            logger.info({"event": "unloaded", "model": resident.offer.name})


def _look_at(task: asyncio.Task[ServedModel]) -> None:
    if not task.cancelled():
        task.exception()  # nobody may be waiting for it any more; the log has it


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
