"""The loop that makes text: feed the engine, take the next piece of the answer."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from bitqwen.generation.answer import Answer
from bitqwen.generation.results import FinishReason, Generation, Piece, Timings, TokenLogprobs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitqwen.engine import Session
    from bitqwen.generation.options import GenerationSettings
    from bitqwen.generation.session_cache import SessionCache
    from bitqwen.generation.tokenizer import Tokenizer


class TextStream(Iterator[Piece]):
    """Pieces of an answer as they are made, one a token.

    Iterate over it; leave early with ``break`` and ``close()``, or use it in a ``with`` block. After the
    last piece its attributes are final.

    Attributes:
        seed: gives the same text again.
        timings: counts and times so far.
    """

    def __init__(
        self,
        sessions: SessionCache,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        settings: GenerationSettings,
        *,
        context: int,
        load_seconds: float = 0.0,
        screened: bool = False,
    ) -> None:
        self.seed = settings.sampling.seed or 0
        self.timings = Timings(prompt_tokens=len(prompt), load_seconds=load_seconds)
        self._context = context
        self._answer = Answer(tokenizer, prompt, settings)
        self._screened = screened
        self._pieces = self._run(sessions, list(prompt))

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._answer.text

    @property
    def tokens(self) -> list[int]:
        """Ids of the answer so far."""
        return self._answer.tokens

    @property
    def finish_reason(self) -> FinishReason | None:
        """``None`` until the end, then "stop" or "length"."""
        return self._answer.finish_reason

    @property
    def stopped_by(self) -> str | int | None:
        """The stop string, or the stop token's id."""
        return self._answer.stopped_by

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        """One entry a token, if asked for."""
        return self._answer.logprobs

    def close(self) -> None:
        """Ends the generation here; its conversation stays in the cache."""
        self._pieces.close()

    def result(self) -> Generation:
        """Runs to the end and returns the whole."""
        for _ in self:
            pass
        if self.finish_reason is None:
            raise RuntimeError("the stream was closed before its end")
        return Generation(
            text=self.text,
            tokens=self.tokens,
            finish_reason=self.finish_reason,
            stopped_by=self.stopped_by,
            logprobs=self.logprobs,
            seed=self.seed,
            timings=self.timings,
        )

    def _run(self, sessions: SessionCache, prompt: list[int]) -> Generator[Piece, None, None]:
        timings = self.timings
        with sessions.lend(prompt) as session:
            timings.cached_tokens = len(session)
            started = time.perf_counter()
            logits = self._feed(session, prompt[timings.cached_tokens :])
            timings.prefill_seconds = time.perf_counter() - started
            while True:
                started = time.perf_counter()
                piece = self._answer.next_piece(logits, room=self._context - len(session))
                timings.generated_tokens = len(self.tokens)
                timings.decode_seconds += time.perf_counter() - started
                if piece or piece.token is not None:
                    yield piece
                if self.finish_reason is not None:
                    return
                started = time.perf_counter()
                logits = self._feed(session, self.tokens[-1:])
                timings.decode_seconds += time.perf_counter() - started
                timings.decode_steps += 1

    def _feed(self, session: Session, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after the last of ``ids``: [vocabulary]; those that will be looked at, if it is screened."""
        logits = session.feed(ids, screen=self._answer.screen if self._screened else None)
        if logits is None:  # the engine's answer to logits="none" only
            raise RuntimeError("the engine returned no logits")
        return logits
