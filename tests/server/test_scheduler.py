"""Many requests on one engine: each gets what it would get alone, and nothing outlives its request."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from dataclasses import replace

import pytest

from bitqwen.errors import ContextLengthError, UsageError
from bitqwen.generation.sampling import SamplingParams
from bitqwen.server.errors import ApiError
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.requests import Delta, GenerationRequest
from bitqwen.server.scheduler import Scheduler

GREEDY = SamplingParams(temperature=0)
RANDOM = {"temperature": 1.5, "top_k": 0, "top_p": 1.0}


def request(prompt, **fields) -> GenerationRequest:
    return GenerationRequest(**{"prompt": prompt, "sampling": GREEDY, "max_tokens": 24} | fields)


async def deltas(scheduler: Scheduler, wanted: GenerationRequest) -> list[Delta]:
    async with scheduler.submit(wanted) as handle:
        return [delta async for delta in handle]


def tokens(made: list[Delta], choice: int = 0) -> list[int]:
    return [delta.token for delta in made if delta.choice == choice and delta.token is not None]


async def settled(scheduler: Scheduler) -> None:
    while scheduler.running or scheduler.queued:
        await asyncio.sleep(0.001)


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


PROMPTS = [list(range(3, 3 + n)) for n in (1, 20, 60, 130, 7, 33, 200, 2, 90)]


def test_prompts_that_arrive_together_share_what_they_begin_with(start_scheduler, language_model):
    scheduler = start_scheduler(step_tokens=32, prefill_tokens=32)
    computed = []
    scheduler.loop.on_step = lambda seconds, tokens: computed.append(tokens)
    beginning = [3 + i % 200 for i in range(300)]
    prompts = [beginning, beginning, [*beginning[:200], *range(3, 40)], list(range(90, 147))]

    async def run():
        handles = [scheduler.submit(request(prompt, max_tokens=4)) for prompt in prompts]
        made = []
        for handle in handles:
            async with handle:
                made.append([delta async for delta in handle])
        return made, [handle.usage.cached_tokens for handle in handles]

    made, cached = asyncio.run(run())
    for prompt, answer in zip(prompts, made, strict=True):
        assert tokens(answer) == language_model.generate(prompt, max_tokens=4, temperature=0).tokens
    assert cached[0] == cached[3] == 0
    assert cached[1] >= 288
    assert cached[2] >= 192
    assert sum(computed) < 300 + 12 + 45 + 57 + 4 * 4


def test_who_waits_for_anothers_prompt_goes_on_when_that_one_is_given_up(start_scheduler, language_model):
    scheduler = start_scheduler(step_tokens=16)
    prompt = [3 + i % 200 for i in range(400)]

    async def run():
        first = scheduler.submit(request(prompt, max_tokens=4))
        second = asyncio.ensure_future(deltas(scheduler, request(prompt, max_tokens=4)))
        while not scheduler.running:
            await asyncio.sleep(0.001)
        first.cancel()
        return await second

    expected = language_model.generate(prompt, max_tokens=4, temperature=0).tokens
    assert tokens(asyncio.run(run())) == expected


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("options", [{"temperature": 0}, {**RANDOM, "seed": 11}])
def test_a_batch_gives_each_request_what_it_gets_alone(
    start_scheduler, language_model, options, prefix_cache
):
    sampling = language_model.sampling.with_overrides(options)
    scheduler = start_scheduler(step_tokens=50, prefill_tokens=17, max_batch=4, prefix_cache=prefix_cache)

    async def run():
        return await asyncio.gather(
            *(deltas(scheduler, request(prompt, sampling=sampling)) for prompt in PROMPTS)
        )

    for prompt, made in zip(PROMPTS, asyncio.run(run()), strict=True):
        alone = language_model.generate(prompt, max_tokens=24, **options)
        assert tokens(made) == alone.tokens
        assert "".join(delta.text for delta in made) == alone.text
        assert made[-1].finish_reason == alone.finish_reason


def test_a_full_kv_cache_lets_requests_wait_and_changes_no_token(start_scheduler, language_model):
    scheduler = start_scheduler(load={"context": 256, "cache_positions": 256}, max_batch=8)
    prompts = [list(range(start, start + 60)) for start in range(3, 11)]

    async def run():
        return await asyncio.gather(
            *(deltas(scheduler, request(prompt, max_tokens=90)) for prompt in prompts)
        )

    for prompt, made in zip(prompts, asyncio.run(run()), strict=True):
        assert tokens(made) == language_model.generate(prompt, max_tokens=90, temperature=0).tokens


def test_choices_share_the_prompt_and_have_their_own_seeds(start_scheduler, language_model):
    sampling = language_model.sampling.with_overrides({**RANDOM, "seed": 5})
    scheduler = start_scheduler()
    made = asyncio.run(deltas(scheduler, request(PROMPTS[3], choices=3, sampling=sampling)))
    for choice in range(3):
        alone = language_model.generate(PROMPTS[3], max_tokens=24, seed=5 + choice, **RANDOM)
        assert tokens(made, choice) == alone.tokens
    assert len({tuple(tokens(made, choice)) for choice in range(3)}) == 3


def test_leaving_early_frees_everything(start_scheduler):
    scheduler = start_scheduler(prefix_cache=False)
    free = scheduler.loop._model.free_positions

    async def run():
        async with scheduler.submit(request(PROMPTS[3], choices=2, max_tokens=None)) as handle:
            await anext(handle)
        await settled(scheduler)

    asyncio.run(run())
    assert scheduler.loop._model.free_positions == free


def test_a_deadline_stops_running_and_waiting_requests(start_scheduler):
    scheduler = start_scheduler(max_batch=1)

    async def run():
        late = [
            deltas(scheduler, request([5], max_tokens=None, sampling=replace(GREEDY), seconds=0.05))
            for _ in range(2)
        ]
        results = await asyncio.gather(*late, return_exceptions=True)
        await settled(scheduler)
        return results

    # 500 tokens may be made in the time; a request that waits behind them may not.
    outcomes = asyncio.run(run())
    assert any(isinstance(outcome, ApiError) and outcome.status == 504 for outcome in outcomes)


def test_a_full_queue_is_told_at_once(start_scheduler):
    scheduler = start_scheduler(max_batch=1, max_queue=1, stream_buffer=1)

    async def run():
        # A buffer of one piece that nobody reads: the first one stays, whatever the engine's speed.
        first = scheduler.submit(request([5]))
        while scheduler.running == 0:
            await asyncio.sleep(0.001)
        second = scheduler.submit(request([6]))
        with pytest.raises(ApiError) as refused:
            scheduler.submit(request([7]))
        assert refused.value.status == 503
        assert int(refused.value.headers["retry-after"]) >= 1
        first.cancel()
        assert len(tokens([delta async for delta in second])) == 24

    asyncio.run(run())


def test_a_slow_reader_pauses_alone(start_scheduler):
    scheduler = start_scheduler(stream_buffer=3)

    async def run():
        slow = scheduler.submit(request([5]))
        assert len(tokens(await deltas(scheduler, request([6])))) == 24
        assert slow.backlog <= 3
        assert len(tokens([delta async for delta in slow])) == 24

    asyncio.run(run())


def test_what_cannot_be_is_refused_at_once(start_scheduler):
    scheduler = start_scheduler()

    async def run():
        with pytest.raises(ContextLengthError, match=r"513 tokens; the context holds 512"):
            scheduler.submit(request([1] * 513))
        with pytest.raises(UsageError, match="empty"):
            scheduler.submit(request([]))
        with pytest.raises(UsageError, match="logit_bias names token 4000"):
            scheduler.submit(request([1], sampling=SamplingParams(logit_bias={4000: 1.0})))

    asyncio.run(run())


def test_the_prefix_cache_saves_the_shared_beginning(start_scheduler):
    scheduler = start_scheduler()

    async def run():
        async with scheduler.submit(request(PROMPTS[3])) as handle:
            answer = tokens([delta async for delta in handle])
            assert handle.usage.cached_tokens == 0
        async with scheduler.submit(request([*PROMPTS[3], *answer, 9, 8, 7])) as handle:
            async for _ in handle:
                pass
            # All but what the last step made, and the new tokens.
            assert handle.usage.cached_tokens == len(PROMPTS[3]) + len(answer) - 1

    asyncio.run(run())


def test_an_engine_that_fails_again_and_again_is_broken(start_scheduler, monkeypatch):
    scheduler = start_scheduler()

    def fail(work, wanted, screens):
        raise RuntimeError("a kernel's thread died")

    async def run():
        monkeypatch.setattr(scheduler.loop._batch, "step", fail)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="died"):
                await deltas(scheduler, request([5]))
        with pytest.raises(ApiError) as refused:
            scheduler.submit(request([5]))
        assert refused.value.status == 503

    asyncio.run(run())
    assert scheduler.broken


def test_a_long_prompt_does_not_stall_those_who_write(start_scheduler):
    """However many answers there are, a step computes no more than it may, and the prompt gets on."""
    scheduler = start_scheduler(prefill_tokens=16, step_tokens=256, prefix_cache=False)
    steps = []
    scheduler.loop.on_step = lambda seconds, tokens: steps.append(tokens)

    async def run(writers: int) -> tuple[list[int], int]:
        others = [scheduler.submit(request([5 + i], max_tokens=400)) for i in range(writers)]
        for other in others:
            await anext(other)
        steps.clear()
        before = [other.usage.completion_tokens for other in others]
        made = await deltas(scheduler, request(list(range(3, 303)), max_tokens=1))
        during = [other.usage.completion_tokens - b for other, b in zip(others, before, strict=True)]
        seen = list(steps)
        for other in others:
            other.cancel()
        await settled(scheduler)
        assert len(tokens(made)) == 1
        return seen, min(during)

    for writers, prompt_tokens in ((1, 15), (6, 10), (14, 4)):
        seen, written = asyncio.run(run(writers))
        assert max(seen) == writers + prompt_tokens
        # The others wrote a token with each of the steps that the prompt took.
        assert written >= 300 // prompt_tokens


def test_who_asks_for_little_does_not_wait_for_who_asks_for_much(start_scheduler):
    """A place that becomes free goes to the client with the least at work, not to the longest queue."""
    scheduler = start_scheduler(max_batch=2, stream_buffer=1)
    ended = []

    async def read(name: str, handle: GenerationHandle) -> None:
        async for _ in handle:
            pass
        ended.append(name)

    async def run():
        # Nobody reads the first two, so that they keep their places until all others wait.
        first = [scheduler.submit(request([5 + i], client="many")) for i in range(2)]
        while scheduler.running < 2:
            await asyncio.sleep(0.001)
        names = ["many"] * 8 + ["few"] * 2
        waiting = [
            read(name, scheduler.submit(request([9 + i], client=name, max_tokens=8)))
            for i, name in enumerate(names)
        ]
        for handle in first:
            handle.cancel()
        await asyncio.gather(*waiting)

    asyncio.run(run())
    assert len(ended) == 10
    assert max(i for i, name in enumerate(ended) if name == "few") < 6


def test_a_request_leaves_nothing_for_the_garbage_collector(start_scheduler):
    """What refers to itself stays until old objects are looked at, which happens ever more rarely."""
    scheduler = start_scheduler()
    ended = []
    scheduler.loop.on_end = lambda job, error: ended.append(weakref.ref(job))

    async def one(left: bool) -> None:
        async with scheduler.submit(request(PROMPTS[3], choices=2)) as handle:
            await anext(handle)
            if not left:
                async for _ in handle:
                    pass
        await settled(scheduler)

    gc.disable()
    try:
        for left in (True, False):
            asyncio.run(one(left))
        until(lambda: len(ended) == 2 and all(job() is None for job in ended))
    finally:
        gc.enable()
