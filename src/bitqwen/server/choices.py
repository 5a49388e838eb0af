"""Whole answers out of the scheduler's pieces, and the numbers that go with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from bitqwen.generation.results import FinishReason, TokenLogprobs
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.requests import Delta, Usage


@dataclass
class Choice:
    """One finished answer.

    Attributes:
        text: without what stopped it.
        tokens: its ids.
        logprobs: one entry a token, if asked for.
        finish_reason: "stop" or "length".
        stopped_by: the stop string or the stop token's id.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Goes on with a piece."""
        self.text += delta.text
        if delta.token is not None:
            self.tokens.append(delta.token)
        if delta.logprobs is not None:
            self.logprobs.append(delta.logprobs)
        self.finish_reason = delta.finish_reason
        self.stopped_by = delta.stopped_by


async def collect(handle: GenerationHandle, choices: int) -> list[Choice]:
    """All choices of a request, when they are finished.

    Raises:
        BitqwenError, ApiError: what made the engine give up.
    """
    made = [Choice() for _ in range(choices)]
    async with handle:
        async for delta in handle:
            made[delta.choice].add(delta)
    return made


async def interleave(handles: Sequence[GenerationHandle]) -> AsyncIterator[tuple[int, Delta]]:
    """The pieces of several requests as they come, each with its request's index.

    Raises:
        BitqwenError, ApiError: what made the engine give up on one of them.
    """
    upcoming = {asyncio.ensure_future(_next(handle)): i for i, handle in enumerate(handles)}
    try:
        while upcoming:
            done, _ = await asyncio.wait(upcoming, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                index = upcoming.pop(future)
                delta = future.result()
                if delta is not None:
                    upcoming[asyncio.ensure_future(_next(handles[index]))] = index
                    yield index, delta
    finally:
        for future in upcoming:
            future.cancel()
        await asyncio.gather(*upcoming, return_exceptions=True)


async def _next(handle: GenerationHandle) -> Delta | None:
    return await anext(handle, None)


def total(usages: Sequence[Usage]) -> Usage:
    """Counts of several requests added up; of times, the longest."""
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        queued_seconds=max(usage.queued_seconds for usage in usages),
        prefill_seconds=max(usage.prefill_seconds for usage in usages),
        decode_seconds=max(usage.decode_seconds for usage in usages),
        seed=usages[0].seed,
    )
