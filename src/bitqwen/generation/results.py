"""What a generation gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability under softmax of the model's own logits.

    What shapes the choice (temperature, penalties, bias, top-k, a constraint ...) does not enter: it is
    defined for every token.

    Attributes:
        token: id.
        text: its text; U+FFFD for a part of a character.
        data: its bytes.
        logprob: natural logarithm of its probability.
    """

    token: int
    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs(TokenLogprob):
    """A generated token's log-probability, and those of the best tokens at its place.

    Attributes:
        top: the best tokens, the best first; as many as were asked for.
    """

    top: tuple[TokenLogprob, ...] = ()


@dataclass
class Timings:
    """Counts and times of one generation; seconds of computing, without the reader's own time.

    Attributes:
        prompt_tokens: length of the prompt.
        cached_tokens: of those, how many an earlier call had left in the KV cache.
        generated_tokens: length of the answer.
        prefill_seconds: reading the rest of the prompt, up to the first token's logits.
        decode_seconds: everything after.
        decode_steps: forward passes in that time.
        load_seconds: loading the model, before.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decode_steps: int = 0
    load_seconds: float = 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens read per second; 0 before the prompt is read."""
        return (
            (self.prompt_tokens - self.cached_tokens) / self.prefill_seconds if self.prefill_seconds else 0.0
        )

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens generated per second; 0 when there was no step after the prompt."""
        return self.decode_steps / self.decode_seconds if self.decode_steps else 0.0


class Piece(str):
    """A piece of a stream's text: a string that knows its token.

    Attributes:
        token: the id whose arrival released this text; ``None`` for text held back until the end. The
            text may be empty: a character or a possible stop string is unfinished.
        logprobs: the token's log-probability and the best ones beside it, if asked for.
    """

    __slots__ = ("logprobs", "token")

    token: int | None
    logprobs: TokenLogprobs | None

    def __new__(cls, text: str, token: int | None = None, logprobs: TokenLogprobs | None = None) -> Piece:
        """A piece with its token."""
        piece = super().__new__(cls, text)
        piece.token = token
        piece.logprobs = logprobs
        return piece

    @property
    def text(self) -> str:
        """The text as a plain string."""
        return str.__str__(self)

    @property
    def logprob(self) -> float | None:
        """The token's log-probability, if asked for."""
        return None if self.logprobs is None else self.logprobs.logprob


@dataclass(frozen=True)
class Generation:
    """A finished generation; ``str()`` of it is its text.

    Attributes:
        text: the answer, without the stop string or token that ended it.
        tokens: its ids, without the stop token. Text held for a stop string is cut from ``text`` only.
        finish_reason: "stop" (a stop token or string) or "length" (max_tokens, or the context is full).
        stopped_by: the stop string, or the stop token's id; ``None`` for any other end.
        logprobs: one entry a token, if asked for.
        seed: gives the same text again.
        timings: counts and times.
    """

    text: str
    tokens: list[int]
    finish_reason: FinishReason
    stopped_by: str | int | None
    logprobs: list[TokenLogprobs] | None
    seed: int
    timings: Timings

    def __str__(self) -> str:
        return self.text
