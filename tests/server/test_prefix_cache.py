"""The prefix cache changes nothing but the time: whatever is kept, forked and evicted."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitqwen.generation.sampling import SamplingParams
from bitqwen.server.prefix_cache import BLOCK, PrefixCache
from bitqwen.server.requests import GenerationRequest
from bitqwen.server.scheduler import Scheduler
from bitqwen.server.settings import ServerSettings


@pytest.fixture(scope="module")
def schedulers(load_tiny):
    """One with a prefix cache in a tight KV cache, one without."""
    both = [
        Scheduler(load_tiny(cache_positions=1024), ServerSettings(model="tiny", prefix_cache=True)),
        Scheduler(load_tiny(), ServerSettings(model="tiny", prefix_cache=False)),
    ]
    yield both
    for scheduler in both:
        scheduler.close()


def answers(scheduler: Scheduler, prompts: list[list[int]]) -> list[list[int]]:
    async def one(prompt: list[int]) -> list[int]:
        request = GenerationRequest(prompt, SamplingParams(temperature=0), max_tokens=8)
        async with scheduler.submit(request) as handle:
            return [delta.token async for delta in handle if delta.token is not None]

    async def run() -> list[list[int]]:
        # Two at a time, so that some find what others are just writing.
        made = []
        for start in range(0, len(prompts), 2):
            made += await asyncio.gather(*map(one, prompts[start : start + 2]))
        return made

    return asyncio.run(run())


# Prompts that share beginnings of every length, at and beside the borders of blocks and pages.
PARTS = st.lists(
    st.sampled_from([(3, 15), (4, 16), (5, 17), (6, 64), (7, 1), (8, 63)]), min_size=1, max_size=5
)


@settings(max_examples=25, deadline=None)
@given(st.lists(PARTS, min_size=2, max_size=8))
def test_the_same_greedy_text_with_and_without(schedulers, conversations):
    prompts = [[token for token, count in parts for _ in range(count)] for parts in conversations]
    with_cache, without = (answers(scheduler, prompts) for scheduler in schedulers)
    assert with_cache == without


class FakeSession:
    """What the cache needs of a session."""

    opened = 0

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = list(tokens)
        FakeSession.opened += 1

    def fork(self) -> FakeSession:
        return FakeSession(self.tokens)

    def truncate(self, length: int) -> None:
        del self.tokens[length:]

    def close(self) -> None:
        FakeSession.opened -= 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.integers(0, 1), max_size=6).map(
                lambda bits: [bit for bit in bits for _ in range(BLOCK // 2)]
            ),
        ),
        max_size=30,
    ),
    st.integers(0, 8),
)
def test_it_finds_the_longest_beginning_and_keeps_its_budget(steps, blocks):
    FakeSession.opened = 0
    cache = PrefixCache(blocks * BLOCK)
    for keep, tokens in steps:
        if keep:
            cache.keep(FakeSession(tokens))
        else:
            held = [entry.tokens for entry in cache._entries.values()]
            best = max((sum(1 for _ in _shared(other, tokens[:-1])) for other in held), default=0)
            session = cache.fork(tokens)
            # Less than a block is not worth a place in the index.
            found = 0 if session is None else len(session.tokens)
            assert found == best if best >= BLOCK else found <= best
            if session is not None:
                assert session.tokens == tokens[:found]
                session.close()
        assert cache.positions <= blocks * BLOCK
        assert FakeSession.opened == len(cache)
    cache.clear()
    assert FakeSession.opened == cache.positions == 0


def _shared(left, right):
    for a, b in zip(left, right, strict=False):
        if a != b:
            return
        yield a
