"""Greedy answers to many prompts: several sequences share each pass over the weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from bitqwen.errors import ContextLengthError
from bitqwen.generation.stopping import StopStrings

if TYPE_CHECKING:
    from bitqwen.engine import Model, Session
    from bitqwen.generation.tokenizer import StreamDecoder, Tokenizer

DEFAULT_SEQUENCES = 16
# New prompts join a step up to this many tokens, so that those under way do not wait long.
_PROMPT_TOKENS = 512
_PAGE = 64  # positions that the KV cache gives out at once

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: up to the stop string or token.
        tokens: how many were generated.
        finish_reason: "stop", or "length" where ``max_tokens`` ended it.
    """

    text: str
    tokens: int
    finish_reason: Literal["stop", "length"]


@dataclass
class _Slot:
    place: int
    session: Session
    pending: list[int]
    stop: StopStrings
    decoder: StreamDecoder
    text: str = ""
    tokens: int = 0


def context_for(prompts: Sequence[Sequence[int]], max_tokens: int) -> int:
    """The context that a model needs to answer prompts."""
    return max(map(len, prompts)) + max_tokens


def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    sequences: int = DEFAULT_SEQUENCES,
    progress: Report | None = None,
) -> list[Answer]:
    """Answers prompts, each with the likeliest token at every place.

    An answer does not depend on which others are under way beside it. What all prompts begin with, such as
    a chat's instructions, is computed once.

    Args:
        model: its KV cache must have room for ``sequences`` contexts.
        tokenizer: the model's.
        prompts: token ids.
        max_tokens: the most for one answer.
        stop: strings that end an answer.
        sequences: how many are under way at once.
        progress: called with answers done and answers in all.

    Raises:
        ContextLengthError: a prompt with its answer may be longer than the model's context.
        ResourceError: the KV cache is too small.
    """
    from bitqwen.engine import Batch

    needed = context_for(prompts, max_tokens) if prompts else 0
    if needed > model.context:
        raise ContextLengthError(
            f"The longest prompt and its answer take {needed} tokens; the context holds {model.context}.",
            hint="Allow fewer tokens an answer, or load the model with a larger context.",
        )
    batch = Batch(model)
    shared = _shared(prompts)
    if model.free_positions < sequences * _whole_pages(needed) + _PAGE:
        # Whole pages are held once for all; for a part of one there is no room.
        shared -= shared % _PAGE
    stem = model.session() if shared else None
    unused = np.array(tokenizer.unused_ids, np.int64)
    waiting = deque(enumerate(prompts))
    active: list[_Slot] = []
    answers: dict[int, Answer] = {}
    try:
        if stem is not None:
            stem.feed(prompts[0][:shared], logits="none")
        while waiting or active:
            if progress is not None:
                progress(len(answers), len(prompts))
            room = _PROMPT_TOKENS
            while waiting and len(active) < sequences and (room >= len(waiting[0][1]) - shared or not active):
                place, prompt = waiting.popleft()
                room -= len(prompt) - shared
                session = model.session() if stem is None else stem.fork()
                pending = list(prompt[shared:])
                active.append(_Slot(place, session, pending, StopStrings(stop), tokenizer.stream_decoder()))
            logits = batch.step([(slot.session, slot.pending) for slot in active])[:, : tokenizer.vocab_size]
            logits[:, unused] = -np.inf
            for slot, token in zip(list(active), logits.argmax(axis=1).tolist(), strict=True):
                answer = _advance(slot, token, tokenizer, max_tokens)
                if answer is not None:
                    answers[slot.place] = answer
                    active.remove(slot)
                    slot.session.close()
    finally:
        for session in [slot.session for slot in active] + ([] if stem is None else [stem]):
            session.close()
    if progress is not None:
        progress(len(answers), len(prompts))
    return [answers[place] for place in range(len(prompts))]


def _whole_pages(positions: int) -> int:
    return -(-positions // _PAGE) * _PAGE


def _shared(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all of several prompts begin with; at least one of each is its own."""
    if len(prompts) < 2:
        return 0
    first, last = min(map(list, prompts)), max(map(list, prompts))
    most = min(map(len, prompts)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def _advance(slot: _Slot, token: int, tokenizer: Tokenizer, max_tokens: int) -> Answer | None:
    """Takes a token in; the whole answer where it ends."""
    if token in tokenizer.stop_ids:
        slot.text += slot.stop.feed(slot.decoder.finish()) + slot.stop.finish()
        return Answer(slot.text, slot.tokens, "stop")
    slot.tokens += 1
    slot.pending = [token]
    slot.text += slot.stop.feed(slot.decoder.feed(token))
    if slot.stop.matched is not None:
        return Answer(slot.text, slot.tokens, "stop")
    if slot.tokens == max_tokens:
        slot.text += slot.stop.feed(slot.decoder.finish()) + slot.stop.finish()
        return Answer(slot.text, slot.tokens, "length")
    return None
