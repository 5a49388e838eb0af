from __future__ import annotations

from pathlib import Path

import pytest

from bitqwen.engine import Batch, Model, Session
from bitqwen.errors import ContextLengthError
from bitqwen.generation.language_model import LanguageModel
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.measure.tasks import batching

TEXTS = ["the quick", "def add(left", "A transformer reads tokens, and", "x", "Über", "for i in", "the dog"]


def alone(engine: Model, tokenizer: Tokenizer, stop: list[str]) -> list[tuple[str, str]]:
    model = LanguageModel(engine, tokenizer)
    answers = [
        model.generate(tokenizer.encode(text), max_tokens=24, temperature=0, stop=stop) for text in TEXTS
    ]
    model.close()
    return [(answer.text, answer.finish_reason) for answer in answers]


@pytest.mark.parametrize("sequences", [1, 3, 4])
@pytest.mark.parametrize("with_stop", [False, True])
def test_answers_are_those_of_each_prompt_alone(
    engine: Model, tokenizer: Tokenizer, sequences: int, with_stop: bool
) -> None:
    # A stop string that does occur: letters from the middle of the first answer.
    whole = alone(engine, tokenizer, [])
    stop = [whole[0][0][6:9]] if with_stop else []
    expected = alone(engine, tokenizer, stop) if with_stop else whole
    assert not with_stop or expected != whole
    found = batching.generate(
        engine,
        tokenizer,
        [tokenizer.encode(text) for text in TEXTS],
        max_tokens=24,
        stop=stop,
        sequences=sequences,
    )
    assert [(answer.text, answer.finish_reason) for answer in found] == expected
    assert all(answer.tokens <= 24 for answer in found)


@pytest.mark.parametrize("length", [5, 64, 100])
def test_what_prompts_begin_with_is_computed_once(
    engine: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    instructions = (tokenizer.encode(TEXTS[2]) * length)[:length]
    prompts = [instructions + tokenizer.encode(text) for text in TEXTS[:4]]
    expected = [batching.generate(engine, tokenizer, [each], max_tokens=16)[0] for each in prompts]
    lengths: list[int] = []
    step = Batch.step

    def counted(batch: Batch, work: list[tuple[Session, list[int]]]) -> object:
        lengths.extend(len(ids) for _, ids in work)
        return step(batch, work)

    monkeypatch.setattr(Batch, "step", counted)
    free = engine.free_positions
    assert batching.generate(engine, tokenizer, prompts, max_tokens=16, sequences=3) == expected
    assert max(lengths) == max(len(each) for each in prompts) - length
    assert engine.free_positions == free


@pytest.mark.parametrize("length", [20, 70])
def test_a_cache_of_exactly_so_many_contexts_is_enough(
    tiny_gguf: Path, tokenizer: Tokenizer, length: int
) -> None:
    instructions = (tokenizer.encode(TEXTS[2]) * length)[:length]
    prompts = [instructions + tokenizer.encode(text)[:4] for text in TEXTS]
    most = 128 - max(map(len, prompts))
    tight = Model.open(tiny_gguf, threads=1, context=128, cache_positions=2 * 128)
    roomy = Model.open(tiny_gguf, threads=1, context=128, cache_positions=4 * 128)
    found = batching.generate(tight, tokenizer, prompts, max_tokens=most, sequences=2)
    assert found == batching.generate(roomy, tokenizer, prompts, max_tokens=most, sequences=2)


def test_progress_and_no_prompts(engine: Model, tokenizer: Tokenizer) -> None:
    seen: list[tuple[int, int]] = []
    prompts = [tokenizer.encode(text) for text in TEXTS]
    batching.generate(
        engine, tokenizer, prompts, max_tokens=2, sequences=2, progress=lambda *step: seen.append(step)
    )
    assert seen[0] == (0, 7)
    assert seen[-1] == (7, 7)
    assert seen == sorted(seen)
    assert batching.generate(engine, tokenizer, [], max_tokens=2) == []


def test_prompts_longer_than_a_step(
    engine: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [tokenizer.encode(text) for text in TEXTS]
    expected = batching.generate(engine, tokenizer, prompts, max_tokens=8, sequences=4)
    monkeypatch.setattr(batching, "_PROMPT_TOKENS", 3)
    assert batching.generate(engine, tokenizer, prompts, max_tokens=8, sequences=4) == expected


def test_what_does_not_fit_is_said_before_anything_runs(engine: Model, tokenizer: Tokenizer) -> None:
    with pytest.raises(ContextLengthError, match="take 258 tokens; the context holds 256"):
        batching.generate(engine, tokenizer, [[1, 2, 3], [1] * 8], max_tokens=250)


def test_an_interrupt_gives_the_cache_back(engine: Model, tokenizer: Tokenizer) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batching.generate(
            engine,
            tokenizer,
            [tokenizer.encode(text) for text in TEXTS],
            max_tokens=5,
            sequences=3,
            progress=stop,
        )
    # All of the cache: four contexts.
    sessions = [engine.session() for _ in range(4)]
    for session in sessions:
        session.feed([1] * 256)
    for session in sessions:
        session.close()
