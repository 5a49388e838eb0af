"""The loop that makes text: feed, sample, decode, watch for the end."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from bitqwen.generation.results import FinishReason, Generation, Piece, Timings, TokenLogprob, TokenLogprobs

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
    last piece the attributes below are final.

    Attributes:
        tokens: ids of the answer so far.
        finish_reason: ``None`` until the end, then "stop" or "length".
        stopped_by: the stop string, or the stop token's id.
        logprobs: one entry a token, if asked for.
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
    ) -> None:
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.stopped_by: str | int | None = None
        self.logprobs: list[TokenLogprobs] | None = None if settings.logprobs is None else []
        self.seed = settings.sampling.seed or 0
        self.timings = Timings(prompt_tokens=len(prompt), load_seconds=load_seconds)
        self._tokenizer = tokenizer
        self._settings = settings
        self._context = context
        self._decoder = tokenizer.stream_decoder()
        self._stop = settings.stop
        self._stop_ids = settings.stop_token_ids | (
            frozenset() if settings.ignore_eos else tokenizer.stop_ids
        )
        forbidden = [*tokenizer.unused_ids, *(tokenizer.stop_ids if settings.ignore_eos else ())]
        self._sampler = settings.sampling.sampler(tokenizer.vocab_size, forbidden=forbidden)
        self._texts: list[str] = []
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
        return "".join(self._texts)

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
            self._sampler.add_prompt(prompt)
            logits = _feed(session, prompt[timings.cached_tokens :])
            timings.prefill_seconds = time.perf_counter() - started
            while True:
                started = time.perf_counter()
                piece = self._next_piece(logits, room=self._context - len(session))
                timings.decode_seconds += time.perf_counter() - started
                if piece or piece.token is not None:
                    yield piece
                if self.finish_reason is not None:
                    return
                started = time.perf_counter()
                logits = _feed(session, self.tokens[-1:])
                timings.decode_seconds += time.perf_counter() - started
                timings.decode_steps += 1

    def _next_piece(self, logits: NDArray[np.float32], room: int) -> Piece:
        """Chooses a token and releases the text that it completes.

        Args:
            logits: [vocabulary], of the next place.
            room: how many more tokens the context can take in.
        """
        constraint = self._settings.constraint
        mask = None if constraint is None else constraint.mask()
        token = self._sampler.sample(logits, mask)
        if token in self._stop_ids:
            self.finish_reason, self.stopped_by = "stop", token
            return self._record(Piece(self._held_back()))
        self._sampler.accept(token)
        if constraint is not None:
            constraint.accept(token)
        self.tokens.append(token)
        self.timings.generated_tokens += 1
        text = self._stop.feed(self._decoder.feed(token))
        if self._stop.matched is None and (len(self.tokens) == self._settings.max_tokens or room == 0):
            self.finish_reason = "length"
            text += self._held_back()
        if self._stop.matched is not None:
            self.finish_reason, self.stopped_by = "stop", self._stop.matched
        return self._record(Piece(text, token, self._logprobs(logits, token)))

    def _held_back(self) -> str:
        """What waited for the rest of a character or of a stop string, now that none comes."""
        return self._stop.feed(self._decoder.finish()) + self._stop.finish()

    def _record(self, piece: Piece) -> Piece:
        self._texts.append(piece)
        if self.logprobs is not None and piece.logprobs is not None:
            self.logprobs.append(piece.logprobs)
        return piece

    def _logprobs(self, logits: NDArray[np.float32], token: int) -> TokenLogprobs | None:
        if self._settings.logprobs is None:
            return None
        from bitqwen._native import token_logprobs

        chosen, best = token_logprobs(logits[: self._tokenizer.vocab_size], token, self._settings.logprobs)
        top = tuple(TokenLogprob(*self._spell(other), logprob) for other, logprob in best)
        return TokenLogprobs(*self._spell(token), chosen, top)

    def _spell(self, token: int) -> tuple[int, str, bytes]:
        data = self._tokenizer.token_bytes(token)
        return token, data.decode("utf-8", "replace"), data


def _feed(session: Session, ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits after the last of ``ids``: [vocabulary]."""
    logits = session.feed(ids)
    if logits is None:  # the engine's answer to logits="none" only
        raise RuntimeError("the engine returned no logits")
    return logits
