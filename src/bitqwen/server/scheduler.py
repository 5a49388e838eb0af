"""One engine for many requests: continuous batching on a thread of its own.

Each turn of the loop takes in what arrived, drops what was cancelled or is late, starts what fits, and runs
one step: one token for each answer being written, and a bounded number of prompt tokens for the others.
When the KV cache is full, first the prefix cache gives way, then the sequence that came last: it is computed
again when there is room, with the same result to the last bit, so that its client notices only the wait.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from bitqwen.engine import Batch
from bitqwen.errors import ContextLengthError, ResourceError, UsageError
from bitqwen.server.errors import ApiError, deadline_passed, overloaded
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.prefix_cache import PrefixCache
from bitqwen.server.requests import Delta, GenerationRequest
from bitqwen.server.sequence import Job, Sequence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitqwen.generation.language_model import LanguageModel
    from bitqwen.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_SPARE = 64  # positions that each sequence may take before another one is let in; a page of the KV cache
_IDLE_SECONDS = 0.5  # how late a deadline in the queue may be noticed
_FAILURES = 3  # steps that fail one after the other before the engine counts as broken


class Scheduler:
    """The engine's thread and what waits for it.

    ``submit`` may be called from any event loop; all else of the interface is its handle's.

    Attributes:
        on_step: called on the engine's thread after each step with its seconds and its tokens.

    Args:
        language_model: used by this scheduler alone.
        settings: limits.
    """

    def __init__(self, language_model: LanguageModel, settings: ServerSettings) -> None:
        self._language_model = language_model
        self._model = language_model.model
        self._tokenizer = language_model.tokenizer
        self._batch = Batch(self._model)
        self._settings = settings
        self._cache = PrefixCache(self._model.cache_positions if settings.prefix_cache else 0)
        self._changed = threading.Condition()
        self._arrived: list[Job] = []  # guarded by _changed, like the three below
        self._stopping = False
        self._failures = 0
        self._queued = 0
        self._waiting: list[Job] = []  # the engine's thread's own, like all below
        self._preempted: list[Sequence] = []
        self._running: list[Sequence] = []
        self._outbox: dict[GenerationHandle, list[Delta | BaseException | None]] = {}
        self.on_step: Callable[[float, int], None] = lambda seconds, tokens: None
        self._thread = threading.Thread(target=self._run, name="bitqwen-engine", daemon=True)
        self._thread.start()

    # -- any thread ----------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> GenerationHandle:
        """Queues a request; its handle belongs to the running event loop.

        Raises:
            ContextLengthError: the prompt leaves no room for an answer.
            UsageError: an empty prompt, or settings that cannot be had.
            ApiError: 503, the queue is full, the server is stopping or the engine is broken.
        """
        self._check(request)
        job = Job(request.with_seed(), request.seconds or self._settings.request_seconds)
        Sequence(job, 0, self._tokenizer)  # so that settings which cannot be had are refused here
        with self._changed:
            if self._stopping:
                raise overloaded("The server is shutting down.", 10)
            if self.broken:
                raise ApiError(503, "The engine has failed; the server's log says why.", code="engine_failed")
            if self.full and not self._free_slot(request.choices):
                raise overloaded(
                    f"The server is busy: {self._queued} requests are waiting, which is as many as may.",
                    1 + self._queued // self._settings.max_batch,
                )
            job.handle = GenerationHandle(job.usage, lambda: self._cancel(job), self._wake)
            self._queued += 1
            self._arrived.append(job)
            self._changed.notify()
        return job.handle

    @property
    def queued(self) -> int:
        """Requests that wait for their first step."""
        return self._queued

    @property
    def full(self) -> bool:
        """Whether as many requests wait as may."""
        return self._queued >= self._settings.max_queue

    @property
    def running(self) -> int:
        """Sequences at work."""
        return len(self._running) + len(self._preempted)

    @property
    def broken(self) -> bool:
        """Whether the engine has failed several times in a row."""
        return self._failures >= _FAILURES

    @property
    def cached_positions(self) -> int:
        """Tokens in the prefix cache."""
        return self._cache.positions

    def close(self) -> None:
        """Ends all requests with 503 and the thread with them; waits for the running step."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _free_slot(self, choices: int) -> bool:
        return self._queued == 0 and self.running + choices <= self._settings.max_batch

    def _check(self, request: GenerationRequest) -> None:
        if not request.prompt:
            raise UsageError("The prompt is empty.")
        if not 1 <= request.choices <= self._settings.max_batch:
            raise UsageError(
                f"{request.choices} choices were asked for; allowed: 1 to {self._settings.max_batch}."
            )
        if len(request.prompt) > self._model.context:
            raise ContextLengthError(
                f"The prompt has {len(request.prompt)} tokens; the context holds {self._model.context}.",
                hint="Shorten the prompt, or start the server with a larger --context.",
            )

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    # -- the engine's thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                arrived, self._arrived = self._arrived, []
                stopping = self._stopping
            self._waiting += arrived
            if stopping:
                break
            self._drop_cancelled_and_late()
            self._start_what_fits()
            work = self._plan()
            if work:
                self._step(work)
            self._send()
            if not work:
                with self._changed:
                    if not self._arrived and not self._stopping:
                        self._changed.wait(_IDLE_SECONDS)
        for job in self._jobs():
            self._end(job, overloaded("The server is shutting down.", 10))
        self._cache.clear()
        self._send()

    def _jobs(self) -> list[Job]:
        at_work = dict.fromkeys(s.job for s in (*self._running, *self._preempted))
        return [*at_work, *self._waiting]

    def _drop_cancelled_and_late(self) -> None:
        now = time.monotonic()
        for job in self._jobs():
            if job.cancelled:
                self._end(job, None)
            elif now > job.deadline:
                self._end(job, deadline_passed(job.seconds))

    def _start_what_fits(self) -> None:
        """Moves jobs out of the queue, those of clients with the least at work first."""
        while self._preempted and self._room_for(self._preempted[0].missing):
            sequence = self._preempted.pop(0)
            sequence.session = self._cache.fork(sequence.next_ids(sequence.length))
            self._running.append(sequence)
        while self._waiting and not self._preempted:
            at_work = Counter(sequence.job.request.client for sequence in self._running)
            job = min(self._waiting, key=lambda job: at_work[job.request.client])
            if self._slots() + job.request.choices > self._settings.max_batch:
                return
            sequence = Sequence(job, 0, self._tokenizer)
            sequence.session = self._cache.fork(job.prompt)
            if not self._room_for(sequence.missing):
                if sequence.session is not None:
                    sequence.session.close()
                return
            self._waiting.remove(job)
            with self._changed:
                self._queued -= 1
            job.note_start()
            job.usage.cached_tokens = job.usage.prompt_tokens - sequence.missing
            job.sequences.append(sequence)
            self._running.append(sequence)

    def _slots(self) -> int:
        """Places in the batch that are taken, by choices to come too."""
        return sum(job.unfinished for job in {s.job for s in (*self._running, *self._preempted)})

    def _room_for(self, tokens: int) -> bool:
        """Whether a sequence that lacks ``tokens`` tokens may start; the prefix cache gives way to it."""
        if not self._running:
            tokens = 1  # alone it can always go on: the cache holds at least one whole context
        spare = _SPARE * (len(self._running) + 1)  # so that it is not thrown out again at once
        promised = sum(sequence.missing for sequence in self._running)
        while self._model.free_positions < tokens + promised + spare:
            if not self._cache.evict():
                return not self._running
        return True

    def _plan(self) -> list[tuple[Sequence, list[int]]]:
        """Sequences of the next step with the ids that each one computes."""
        limit = self._settings.stream_buffer
        ready = [s for s in self._running if s.job.handle is not None and s.job.handle.backlog < limit]
        writing = [(sequence, list(sequence.next_ids(1))) for sequence in ready if sequence.writing]
        reading = sorted((s for s in ready if not s.writing), key=lambda sequence: sequence.missing)
        budget = self._settings.prefill_tokens if writing else self._settings.step_tokens
        work = writing
        for i, sequence in enumerate(reading):
            # The same share for all; what a short prompt leaves of its share goes to the longer ones.
            share = -(-budget // (len(reading) - i))
            ids = list(sequence.next_ids(min(share, budget)))
            if ids:
                work.append((sequence, ids))
                budget -= len(ids)
        return work

    def _step(self, work: list[tuple[Sequence, list[int]]]) -> None:
        started = time.monotonic()
        for sequence, _ in work:
            if sequence.session is None:
                sequence.session = self._model.session()
        logits = self._forward(work)
        if logits is None:
            return
        made: Counter[Job] = Counter()
        failed: dict[Job, Exception] = {}
        read = [sequence for sequence, _ in work if sequence.missing == 0]
        for row, sequence in enumerate(read):
            try:
                for member in self._members(sequence):
                    made[member.job] += self._advance(member, logits[row])
            except Exception as error:  # such as a grammar that cannot be followed: the fault of this one only
                failed[sequence.job] = error
        for job, tokens in made.items():
            job.note_step(tokens)
            if job.unfinished == 0 and job not in failed:
                self._end(job, None)
        for job, error in failed.items():
            self._end(job, error)
        self.on_step(time.monotonic() - started, sum(len(ids) for _, ids in work))

    def _forward(self, work: list[tuple[Sequence, list[int]]]) -> NDArray[np.float32] | None:
        """Logits of the sequences that are complete then: [sequences, vocabulary]; ``None`` without a step.

        Sequences that lose their place to others are removed from ``work``.
        """
        while work:
            try:
                logits = self._batch.step(
                    [(s.session, ids) for s, ids in work if s.session is not None],
                    wanted=[len(ids) == s.missing for s, ids in work],
                )
            except ResourceError as error:
                if self._cache.evict():
                    continue
                self._preempt(work, error)
            except Exception as error:
                self._fail(work, error)
                return None
            else:
                self._failures = 0
                return logits
        return None

    def _preempt(self, work: list[tuple[Sequence, list[int]]], error: ResourceError) -> None:
        """Takes the place of the sequence that came last; it will be computed again."""
        if len(self._running) == 1:  # the cache is smaller than one context: there is nothing to wait for
            job = self._running[0].job
            self._end(job, overloaded(error.message, 10))
            work.clear()
            return
        victim = self._running.pop()
        if victim.session is not None:
            victim.session.close()
            victim.session = None
        self._preempted.insert(0, victim)
        work[:] = [(sequence, ids) for sequence, ids in work if sequence is not victim]

    def _fail(self, work: list[tuple[Sequence, list[int]]], error: Exception) -> None:
        logger.error("a step failed", exc_info=error)
        with self._changed:
            self._failures += 1
        for job in dict.fromkeys(sequence.job for sequence, _ in work):
            self._end(job, error)

    def _members(self, first: Sequence) -> list[Sequence]:
        """The sequences that go on from these logits: all choices, when the prompt has just been read."""
        job = first.job
        if first.answer.tokens or first.session is None:
            return [first]
        if self._settings.prefix_cache:
            self._cache.keep(first.session.fork())
        for choice in range(1, job.request.choices):
            sequence = Sequence(job, choice, self._tokenizer)
            sequence.session = first.session.fork()
            job.sequences.append(sequence)
            self._running.append(sequence)
        return list(job.sequences)

    def _advance(self, sequence: Sequence, logits: NDArray[np.float32]) -> int:
        """Lets a sequence choose its next token; the number of tokens made."""
        job = sequence.job
        before = len(sequence.answer.tokens)
        delta = sequence.advance(logits, self._model.context)
        if delta is not None and job.handle is not None:
            job.handle.count()
            self._outbox.setdefault(job.handle, []).append(delta)
        if sequence.answer.finish_reason is not None:
            job.unfinished -= 1
            self._release(sequence)
        return len(sequence.answer.tokens) - before

    def _release(self, sequence: Sequence) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
        if sequence in self._preempted:
            self._preempted.remove(sequence)
        session, sequence.session = sequence.session, None
        if session is not None:
            self._cache.keep(session)

    def _end(self, job: Job, error: BaseException | None) -> None:
        for sequence in job.sequences:
            self._release(sequence)
        if job in self._waiting:
            self._waiting.remove(job)
            with self._changed:
                self._queued -= 1
        if job.handle is not None:
            self._outbox.setdefault(job.handle, []).append(error)

    def _send(self) -> None:
        """Hands everything to the event loops, each woken once."""
        outbox, self._outbox = self._outbox, {}
        loops: dict[
            asyncio.AbstractEventLoop, list[tuple[GenerationHandle, list[Delta | BaseException | None]]]
        ]
        loops = {}
        for handle, items in outbox.items():
            loops.setdefault(handle.loop, []).append((handle, items))
        for loop, parcels in loops.items():
            try:
                loop.call_soon_threadsafe(_deliver, parcels)
            except RuntimeError:  # the loop was closed: nobody reads this any more
                logger.debug("an event loop went away with %d requests", len(parcels))


def _deliver(parcels: list[tuple[GenerationHandle, list[Delta | BaseException | None]]]) -> None:
    for handle, items in parcels:
        handle.put(items)
