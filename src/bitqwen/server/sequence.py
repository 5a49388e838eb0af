"""What the engine's thread knows of a request: the job, and one sequence for each of its choices."""

from __future__ import annotations

import time
from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING

from bitqwen.generation.answer import Answer
from bitqwen.server.prefix_cache import block_keys
from bitqwen.server.requests import Delta, GenerationRequest, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitqwen.engine import Session
    from bitqwen.generation.tokenizer import Tokenizer
    from bitqwen.server.handle import GenerationHandle


class Job:
    """A submitted request.

    Attributes:
        request: what was asked.
        prompt: its ids.
        keys: of the prompt's blocks, as the prefix cache has them.
        deadline: on ``time.monotonic``'s clock.
        seconds: the time limit behind it.
        handle: where the pieces go.
        cancelled: set by any thread; the engine's thread acts on it before its next step.
        sequences: the choices at work; the first one alone until the prompt is read.
        unfinished: choices without a finish reason.
    """

    def __init__(self, request: GenerationRequest, seconds: float) -> None:
        self.request = request
        self.prompt = list(request.prompt)
        self.keys = list(block_keys(self.prompt))
        self.seconds = seconds
        self.submitted = time.monotonic()
        self.deadline = self.submitted + seconds
        self.usage = Usage(prompt_tokens=len(self.prompt), seed=request.sampling.seed or 0)
        self.handle: GenerationHandle | None = None
        self.cancelled = False
        self.sequences: list[Sequence] = []
        self.unfinished = request.choices
        self.started: float | None = None  # of its first step
        self.first_token: float | None = None

    def note_start(self) -> None:
        """Notes that it leaves the queue."""
        if self.started is None:
            self.started = time.monotonic()
            self.usage.queued_seconds = self.started - self.submitted

    def let_go(self) -> None:
        """Drops what refers back to it, so that all memory of a request goes with the last who holds it.

        Left to the garbage collector, requests would pile up until it looks at old objects, which it does
        the more rarely the more there are.
        """
        self.handle = None
        self.sequences = []

    def note_step(self, tokens: int) -> None:
        """Notes that a step made ``tokens`` tokens for it."""
        now = time.monotonic()
        started = self.started if self.started is not None else now
        if self.first_token is None:
            self.first_token = now
            self.usage.prefill_seconds = now - started
        self.usage.decode_seconds = now - self.first_token
        self.usage.completion_tokens += tokens


class Sequence:
    """One choice: an answer in the making and its place in the KV cache.

    Attributes:
        job: whose choice it is.
        choice: its index.
        answer: its state.
        session: its keys and values; ``None`` while it waits for memory.
    """

    def __init__(self, job: Job, choice: int, tokenizer: Tokenizer) -> None:
        self.job = job
        self.choice = choice
        self.answer = Answer(tokenizer, job.prompt, job.request.settings(choice))
        self.session: Session | None = None

    @property
    def length(self) -> int:
        """Tokens so far, prompt included."""
        return len(self.job.prompt) + len(self.answer.tokens)

    @property
    def missing(self) -> int:
        """Tokens that are not in the KV cache; one while an answer is being written."""
        return self.length - (0 if self.session is None else len(self.session))

    @property
    def writing(self) -> bool:
        """Whether the next step only adds the token that the last one chose."""
        return bool(self.answer.tokens) and self.missing == 1

    def next_ids(self, limit: int) -> Tokens[int]:
        """The next ids to compute, at most ``limit`` of them."""
        start = 0 if self.session is None else len(self.session)
        prompt = self.job.prompt
        if start >= len(prompt):
            return self.answer.tokens[start - len(prompt) : start - len(prompt) + limit]
        return [*prompt[start : start + limit], *self.answer.tokens[: max(0, start + limit - len(prompt))]]

    def fork(self, length: int) -> Session | None:
        """A session of its first ``length`` tokens; ``None`` if it holds none.

        Raises:
            UsageError: it holds fewer.
        """
        if self.session is None:
            return None
        session = self.session.fork()
        session.truncate(length)
        return session

    def advance(self, logits: NDArray[np.float32], context: int) -> Delta | None:
        """Takes the next piece from the logits of its last token.

        Args:
            logits: [vocabulary].
            context: tokens that a sequence may have.

        Returns:
            What to tell the client, if anything.
        """
        answer = self.answer
        piece = answer.next_piece(logits, room=context - self.length)
        if not piece and piece.token is None and answer.finish_reason is None:
            return None
        return Delta(
            self.choice, piece.text, piece.token, piece.logprobs, answer.finish_reason, answer.stopped_by
        )
