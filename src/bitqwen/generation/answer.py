"""One answer in the making: logits in, a token and its text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bitqwen.generation.results import FinishReason, Piece, TokenLogprob, TokenLogprobs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitqwen.engine import Screen
    from bitqwen.generation.options import GenerationSettings
    from bitqwen.generation.tokenizer import Tokenizer


class Answer:
    """Samples, decodes, and watches for the end.

    Attributes:
        tokens: ids so far, without the stop token.
        finish_reason: ``None`` until the end, then "stop" or "length".
        stopped_by: the stop string, or the stop token's id; ``None`` for any other end.
        logprobs: one entry a token, if asked for.

    Args:
        tokenizer: the model's.
        prompt: ids of the prompt, for the repetition penalty.
        settings: of this answer alone; stop strings and constraints have a state.

    Raises:
        UsageError: a logit bias for a token that the model does not have.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], settings: GenerationSettings) -> None:
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.stopped_by: str | int | None = None
        self.logprobs: list[TokenLogprobs] | None = None if settings.logprobs is None else []
        self._tokenizer = tokenizer
        self._settings = settings
        self._decoder = tokenizer.stream_decoder()
        self._stop = settings.stop
        self._stop_ids = settings.stop_token_ids | (
            frozenset() if settings.ignore_eos else tokenizer.stop_ids
        )
        forbidden = frozenset(tokenizer.unused_ids) | (
            tokenizer.stop_ids if settings.ignore_eos else frozenset()
        )
        self._sampler = settings.sampling.sampler(tokenizer.vocab_size, forbidden=sorted(forbidden))
        self._sampler.add_prompt(list(prompt))
        self._texts: list[str] = []

    @property
    def screen(self) -> Screen | None:
        """The logits that the next piece will look at; ``None`` for all.

        All are needed for log-probabilities, for a constraint, and where the sampler says so.
        """
        from bitqwen.engine import Screen

        if self._settings.logprobs is not None or self._settings.constraint is not None:
            return None
        needed = self._sampler.needed()
        if needed is None:
            return None
        top, margin, lowered = needed
        return Screen(
            top=top or None,
            margin=None if margin < 0 else margin,
            rows=self._tokenizer.vocab_size,
            lowered=np.frombuffer(lowered, dtype=np.int32),
        )

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def next_piece(self, logits: NDArray[np.float32], room: int) -> Piece:
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
        text = self._stop.feed(self._decoder.feed(token))
        if self._stop.matched is None:
            if constraint is not None and constraint.done:
                self.finish_reason = "stop"
            elif len(self.tokens) == self._settings.max_tokens or room == 0:
                self.finish_reason = "length"
            if self.finish_reason is not None:
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
        return token_logprobs(self._tokenizer, logits, token, self._settings.logprobs)


def token_logprobs(tokenizer: Tokenizer, logits: NDArray[np.float32], token: int, top: int) -> TokenLogprobs:
    """A token's log-probability and those of the ``top`` best beside it, spelt out.

    Args:
        tokenizer: the model's.
        logits: [vocabulary], of the token's place.
        token: the id at that place.
        top: how many of the best to name.
    """
    from bitqwen._native import token_logprobs as native

    def spell(other: int) -> tuple[int, str, bytes]:
        data = tokenizer.token_bytes(other)
        return other, data.decode("utf-8", "replace"), data

    chosen, best = native(logits[: tokenizer.vocab_size], token, top)
    return TokenLogprobs(
        *spell(token), chosen, tuple(TokenLogprob(*spell(other), value) for other, value in best)
    )
