"""Continuous batching, on a thread of its own.

Each turn of the loop takes in what arrived, drops what was cancelled or is late, starts what fits, and runs
one step: one token for each answer being written, and a bounded number of prompt tokens for the others.
When the KV cache is full, first the prefix cache gives way, then the sequence that came last: it is computed
again when there is room, with the same result to the last bit, so that its client notices only the wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from bitqwen.engine import Batch
from bitqwen.errors import ResourceError
from bitqwen.server.errors import deadline_passed, overloaded
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.mailbox import Mailbox
from bitqwen.server.prefix_cache import BLOCK, PrefixCache, shared_tokens
from bitqwen.server.reading import Reading
from bitqwen.server.requests import Delta
from bitqwen.server.sequence import Job, Sequence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitqwen.generation.language_model import LanguageModel
    from bitqwen.server.prefix_store import PrefixStore
    from bitqwen.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_SPARE = 64  # positions that each sequence may take before another one is let in; a page of the KV cache
_WORTH_WAITING = 2 * BLOCK  # tokens of another's prompt that are not computed a second time
_IDLE_SECONDS = 0.5  # how late a deadline in the queue may be noticed

Outbox = dict[GenerationHandle, list["Delta | BaseException | None"]]


class EngineLoop:
    """Everything that only the engine's thread touches; ``run`` is that thread.

    Attributes:
        failures: steps that failed, one after the other.
        on_step: called after each step with its seconds and its tokens.
        on_end: called for each request that ends, with its error if it has one.

    Args:
        language_model: used by this loop alone.
        settings: limits.
        mailbox: where work comes from.
        store: what the prefix cache is filled from now, and saved to when all is over.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        settings: ServerSettings,
        mailbox: Mailbox,
        store: PrefixStore | None = None,
    ) -> None:
        self._model = language_model.model
        self._tokenizer = language_model.tokenizer
        self._batch = Batch(self._model)
        self._settings = settings
        self._mailbox = mailbox
        self._cache = PrefixCache(self._model.cache_positions if settings.prefix_cache else 0)
        self._store = store
        if store is not None:
            store.restore(self._cache, self._model)
        self._waiting: list[Job] = []
        self._preempted: list[Sequence] = []
        self._running: list[Sequence] = []
        self._readings: list[Reading] = []
        self._outbox: Outbox = {}
        self.failures = 0
        self.on_step: Callable[[float, int], None] = lambda seconds, tokens: None
        self.on_end: Callable[[Job, BaseException | None], None] = lambda job, error: None

    @property
    def running(self) -> int:
        """Sequences at work."""
        return len(self._running) + len(self._preempted)

    @property
    def cached_positions(self) -> int:
        """Tokens in the prefix cache."""
        return self._cache.positions

    def run(self) -> None:
        """Works until the mailbox is stopped; then ends all requests with 503."""
        while not self._mailbox.stopping:
            self._take_in()
            self._drop_cancelled_and_late()
            self._start_what_fits()
            work = self._plan()
            if work:
                self._step(work)
            progress = self._read_on() or bool(work)
            self._send()
            if not progress:
                self._mailbox.wait(_IDLE_SECONDS)
        self._take_in()
        goodbye = overloaded("The server is shutting down.", 10)
        for job in self._jobs():
            self._end(job, goodbye)
        for reading in list(self._readings):
            self._end_reading(reading, goodbye)
        self._send()
        if self._store is not None:
            self._store.save(self._cache, self._model)
        self._cache.clear()

    def _take_in(self) -> None:
        for work in self._mailbox.take():
            if isinstance(work, Job):
                self._waiting.append(work)
            else:
                self._readings.append(work)

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
        for reading in list(self._readings):
            if reading.cancelled:
                self._end_reading(reading, None)
            elif now > reading.deadline:
                self._end_reading(reading, deadline_passed(reading.seconds))

    def _start_what_fits(self) -> None:
        """Moves jobs out of the queue, those of clients with the least at work first."""
        while self._preempted and self._room_for(self._preempted[0].missing):
            sequence = self._preempted.pop(0)
            sequence.session = self._cache.fork(sequence.next_ids(sequence.length))
            self._running.append(sequence)
        candidates = list(self._waiting)
        while candidates and not self._preempted:
            at_work = Counter(sequence.job.request.client for sequence in self._running)
            job = min(candidates, key=lambda job: at_work[job.request.client])
            if self._slots() + job.request.choices > self._settings.max_batch:
                return
            candidates.remove(job)
            leader, shared = self._leader(job)
            if leader is not None and (leader.session is None or len(leader.session) < shared):
                continue  # what it would compute is being computed
            sequence = Sequence(job, 0, self._tokenizer)
            sequence.session = self._cache.fork(job.prompt) if leader is None else leader.fork(shared)
            if not self._room_for(sequence.missing):
                if sequence.session is not None:
                    sequence.session.close()
                return
            self._waiting.remove(job)
            self._mailbox.leave()
            job.note_start()
            job.usage.cached_tokens = job.usage.prompt_tokens - sequence.missing
            job.sequences.append(sequence)
            self._running.append(sequence)

    def _leader(self, job: Job) -> tuple[Sequence | None, int]:
        """Who is reading a prompt that begins as a job's does, and the tokens that are worth waiting for.

        Nobody, if the cache holds about as much.
        """
        if not self._settings.prefix_cache:
            return None, 0
        readers = [sequence for sequence in self._running if not sequence.answer.tokens]
        leader = max(readers, key=lambda reader: shared_tokens(job.keys, reader.job.keys), default=None)
        if leader is None:
            return None, 0
        shared = min(shared_tokens(job.keys, leader.job.keys), len(job.prompt) - 1)
        if shared < self._cache.known(job.keys) + _WORTH_WAITING:
            return None, 0
        if job.prompt[:shared] != leader.job.prompt[:shared]:  # never rest on a hash
            return None, 0
        return leader, shared

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

    def _read_on(self) -> bool:
        """Reads a chunk of the first text that is only to be read; whether there was one."""
        if not self._readings:
            return False
        reading = self._readings[0]
        limit = self._settings.prefill_tokens if self._running else self._settings.step_tokens
        try:
            if reading.advance(self._model, limit) < limit:
                self._end_reading(reading, None)
        except ResourceError as error:
            if self._cache.evict():
                return True
            if self._running:
                return False  # what runs will free some
            self._end_reading(reading, error)
        except Exception as error:
            logger.exception("a text could not be read")
            self._end_reading(reading, error)
        return True

    def _end_reading(self, reading: Reading, error: BaseException | None) -> None:
        self._readings.remove(reading)
        self._mailbox.leave()
        reading.end(error)

    def _prompt_tokens(self, writing: int) -> int:
        """Tokens of prompts that a step may read while it writes to ``writing`` answers.

        An answer's token is as much work as a prompt's, so they share a bound: a step takes about as long
        however many answers there are. At least a quarter of it is left to prompts.
        """
        if not writing:
            return self._settings.step_tokens
        limit = self._settings.prefill_tokens
        return max(limit - writing, -(-limit // 4))

    def _plan(self) -> list[tuple[Sequence, list[int]]]:
        """Sequences of the next step with the ids that each one computes."""
        limit = self._settings.stream_buffer
        ready = [s for s in self._running if s.job.handle is not None and s.job.handle.backlog < limit]
        writing = [(sequence, list(sequence.next_ids(1))) for sequence in ready if sequence.writing]
        reading = sorted((s for s in ready if not s.writing), key=lambda sequence: sequence.missing)
        budget = self._prompt_tokens(len(writing))
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
            except (
                Exception
            ) as error:  # such as a grammar that cannot be followed: the fault of this one only
                failed[sequence.job] = error
        for job, tokens in made.items():
            job.note_step(tokens)
            if job.unfinished == 0 and job not in failed:
                self._end(job, None)
        for job, reason in failed.items():
            self._end(job, reason)
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
                    screens=[s.answer.screen for s, _ in work] if self._model.screened else None,
                )
            except ResourceError as error:
                if self._cache.evict():
                    continue
                self._preempt(work, error)
            except Exception as error:
                self._fail(work, error)
                return None
            else:
                self.failures = 0
                return logits
        return None

    def _preempt(self, work: list[tuple[Sequence, list[int]]], error: ResourceError) -> None:
        """Takes the place of the sequence that came last; it will be computed again."""
        if len(self._running) == 1:
            if self._readings and self._readings[0].started:
                self._end_reading(self._readings[0], overloaded(error.message, 10))
                return
            # The cache is smaller than one context: there is nothing to wait for.
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
        self.failures += 1
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
            self._mailbox.leave()
        if job.handle is not None:
            self._outbox.setdefault(job.handle, []).append(error)
        self.on_end(job, error)
        job.let_go()

    def _send(self) -> None:
        """Hands everything to the event loops, each woken once."""
        outbox, self._outbox = self._outbox, {}
        loops: dict[asyncio.AbstractEventLoop, Outbox] = {}
        for handle, items in outbox.items():
            loops.setdefault(handle.loop, {})[handle] = items
        for loop, parcels in loops.items():
            try:
                loop.call_soon_threadsafe(_deliver, parcels)
            except RuntimeError:  # the loop was closed: nobody reads this any more
                logger.debug("an event loop went away with %d requests", len(parcels))


def _deliver(parcels: Outbox) -> None:
    for handle, items in parcels.items():
        handle.put(items)
