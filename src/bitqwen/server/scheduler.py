"""One engine for many requests: where they are handed in, and what is known of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING

from bitqwen.errors import ContextLengthError, UsageError
from bitqwen.server.engine_loop import EngineLoop
from bitqwen.server.errors import ApiError
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.mailbox import Mailbox
from bitqwen.server.reading import Reading, Take
from bitqwen.server.requests import GenerationRequest
from bitqwen.server.sequence import Job, Sequence

if TYPE_CHECKING:
    from bitqwen.generation.language_model import LanguageModel
    from bitqwen.server.prefix_store import PrefixStore
    from bitqwen.server.settings import ServerSettings

_FAILURES = 3  # steps that fail one after the other before the engine counts as broken


class Scheduler:
    """The engine's thread and what waits for it; every method may be called from any event loop.

    Attributes:
        loop: what runs on the engine's thread.

    Args:
        language_model: its engine is used by this scheduler alone.
        settings: limits.
        store: where the prefix cache comes from and goes to, if it outlives the scheduler.
    """

    def __init__(
        self, language_model: LanguageModel, settings: ServerSettings, store: PrefixStore | None = None
    ) -> None:
        self._context = language_model.context
        self._tokenizer = language_model.tokenizer
        self._settings = settings
        self._mailbox = Mailbox(settings.max_queue, settings.max_batch)
        self.loop = EngineLoop(language_model, settings, self._mailbox, store)
        self._thread = threading.Thread(target=self.loop.run, name="bitqwen-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> GenerationHandle:
        """Queues a request; its handle belongs to the running event loop.

        Raises:
            ContextLengthError: the prompt is longer than the context.
            UsageError: an empty prompt, or settings that cannot be had.
            ApiError: 503, the queue is full, the server is stopping or the engine is broken.
        """
        if not 1 <= request.choices <= self._settings.max_batch:
            raise UsageError(
                f"{request.choices} choices were asked for; allowed: 1 to {self._settings.max_batch}."
            )
        self._check(request.prompt)
        job = Job(request.with_seed(), request.seconds or self._settings.request_seconds)
        Sequence(job, 0, self._tokenizer)  # so that settings which cannot be had are refused here
        handle = job.handle = GenerationHandle(job.usage, lambda: self._cancel(job), self._note_read)
        self._mailbox.put(job, self._settings.max_batch - self.running - request.choices + 1)
        return handle

    async def read(self, ids: Tokens[int], take: Take, *, hidden: bool, seconds: float | None = None) -> None:
        """Reads a text, beside the answers being written; see :class:`Reading` for the arguments.

        Raises:
            ContextLengthError, UsageError, ApiError: as :meth:`submit`.
        """
        self._check(ids)
        reading = Reading(ids, take, hidden=hidden, seconds=seconds or self._settings.request_seconds)
        self._mailbox.put(reading, self._settings.max_batch - self.running)
        await reading.wait()

    @property
    def queued(self) -> int:
        """Requests that wait for their first step."""
        return self._mailbox.waiting

    @property
    def full(self) -> bool:
        """Whether as many requests wait as may."""
        return self._mailbox.full and self.running > 0

    @property
    def running(self) -> int:
        """Sequences at work."""
        return self.loop.running

    @property
    def broken(self) -> bool:
        """Whether the engine has failed several times in a row, or its thread has ended."""
        return self.loop.failures >= _FAILURES or not self._thread.is_alive()

    @property
    def cached_positions(self) -> int:
        """Tokens in the prefix cache."""
        return self.loop.cached_positions

    def close(self) -> None:
        """Ends all requests with 503 and the thread with them; waits for the running step."""
        self._mailbox.stop()
        self._thread.join()

    def _check(self, ids: Tokens[int]) -> None:
        if self.broken and not self._mailbox.stopping:
            raise ApiError(503, "The engine has failed; the server's log says why.", code="engine_failed")
        if not ids:
            raise UsageError("The prompt is empty.")
        if len(ids) > self._context:
            raise ContextLengthError(
                f"The prompt has {len(ids)} tokens; the context holds {self._context}.",
                hint="Shorten the prompt, or start the server with a larger --context.",
            )

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        self._mailbox.poke()

    def _note_read(self, backlog: int) -> None:
        if backlog + 1 == self._settings.stream_buffer:  # its sequence may have been waiting for this
            self._mailbox.poke()
