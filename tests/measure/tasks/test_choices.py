from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_model import log_softmax
from hypothesis import given
from hypothesis import strategies as st

from bitqwen.engine import Model
from bitqwen.errors import ModelFileError
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.measure.tasks import choices
from bitqwen.measure.tasks.choices import Question
from bitqwen.measure.tasks.items import Item


def read(**fields: Any) -> Question:
    return choices.question(Item("1", "file, line 1,", fields))


@pytest.mark.parametrize(
    ("answer", "place"),
    [(1, 1), ("1", 1), ("B", 1), ("c", 2), ("green", 1), (" blue ", 2)],
)
def test_answers_are_given_in_many_ways(answer: object, place: int) -> None:
    assert read(question="Q?", choices=["red", "green", "blue"], answer=answer).answer == place


def test_layouts_of_known_data_sets() -> None:
    arc = read(question="Q?", choices={"text": ["a b", "c d"], "label": ["1", "2"]}, answerKey="1")
    assert (arc.prompt, arc.choices, arc.answer) == ("Question: Q?\nAnswer:", ("a b", "c d"), 0)
    hellaswag = read(ctx="A man", endings=["runs.", "sits."], label="1")
    assert (hellaswag.prompt, hellaswag.answer) == ("A man", 1)
    assert read(question="Q?", choices=["x", "y"], expected_index=0).answer == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "none of the fields prompt, ctx"),
        ({"question": "Q", "answer": 0}, "none of the fields choices"),
        ({"question": "Q", "choices": ["a"], "answer": 0}, "two texts or more"),
        ({"question": "Q", "choices": ["a", ""], "answer": 0}, "two texts or more"),
        ({"question": "Q", "choices": {"label": ["A"]}, "answer": 0}, "two texts or more"),
        ({"question": "Q", "choices": ["a", 3], "answer": 0}, "two texts or more"),
        ({"question": "Q", "choices": ["a", "b"]}, "none of the fields answer"),
        ({"question": "Q", "choices": ["a", "b"], "answer": 2}, "a field answer that names none of its 2"),
        ({"question": "Q", "choices": ["a", "b"], "answer": -1}, "names none"),
        ({"question": "Q", "choices": ["a", "b"], "answer": True}, "names none"),
        ({"question": "Q", "choices": ["a", "b"], "answer": "C"}, "names none"),
        ({"question": "Q", "choices": ["a", "b"], "answer": "9" * 5000}, "names none"),
        ({"question": "Q", "choices": ["a", "b"], "answer": [0]}, "names none"),
    ],
)
def test_items_that_are_no_question(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        read(**fields)


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    str.strip
)


@given(prompt=TEXTS, choice=TEXTS)
def test_prompt_and_choice_are_one_text(tokenizer: Tokenizer, prompt: str, choice: str) -> None:
    first, second = choices.encode_pair(tokenizer, prompt, choice)
    assert first and second
    joined = prompt + choice if prompt[-1:].isspace() or choice[0].isspace() else f"{prompt} {choice}"
    assert first + second == tokenizer.encode(joined)


def test_likelihoods_are_those_of_the_whole_text(engine: Model, tokenizer: Tokenizer) -> None:
    """Shared beginnings and forks change nothing."""
    asked = Question("1", "the quick brown", (" fox jumps", " fox went on over the dog", " dog"), 0)
    for choice, found in zip(asked.choices, choices.log_likelihoods(engine, tokenizer, asked), strict=True):
        prompt, rest = choices.encode_pair(tokenizer, asked.prompt, choice)
        logprobs = log_softmax(engine.logits(prompt + rest)[:, : tokenizer.vocab_size])
        rows = np.arange(len(prompt) - 1, len(prompt) + len(rest) - 1)
        assert found == pytest.approx(float(logprobs[rows, rest].sum()), rel=1e-5)


@pytest.mark.parametrize("prompt", ["a", "the", "x "])
def test_the_shortest_prompts(engine: Model, tokenizer: Tokenizer, prompt: str) -> None:
    asked = Question("1", prompt, ("b", "b b b"), 0)
    for choice, found in zip(asked.choices, choices.log_likelihoods(engine, tokenizer, asked), strict=True):
        first, rest = choices.encode_pair(tokenizer, prompt, choice)
        logprobs = log_softmax(engine.logits(first + rest)[:, : tokenizer.vocab_size])
        rows = np.arange(len(first) - 1, len(first) + len(rest) - 1)
        assert found == pytest.approx(float(logprobs[rows, rest].sum()), rel=1e-5)


def test_both_accuracies(monkeypatch: pytest.MonkeyPatch, engine: Model, tokenizer: Tokenizer) -> None:
    # Per byte the long choice is better, in all the short one is.
    monkeypatch.setattr(choices, "log_likelihoods", lambda *_: [-3.0, -4.0])
    asked = [Question("a", "p", ("xx", "xxxxxxxx"), 0), Question("b", "p", ("xx", "xxxxxxxx"), 1)]
    seen: list[tuple[int, int]] = []
    plain, per_byte = choices.run(
        engine, tokenizer, asked, name="quiz", progress=lambda *step: seen.append(step)
    )
    assert [item.solved for item in plain.items] == [True, False]
    assert [item.answer for item in plain.items] == ["0", "0"]
    assert [item.solved for item in per_byte.items] == [False, True]
    assert (plain.metric, per_byte.metric) == ("accuracy", "accuracy per byte")
    assert seen == [(0, 2), (1, 2), (2, 2)]
