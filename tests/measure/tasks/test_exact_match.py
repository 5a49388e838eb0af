from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitqwen.engine import Model
from bitqwen.errors import ModelFileError
from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.measure.tasks import batching, exact_match
from bitqwen.measure.tasks.batching import Answer
from bitqwen.measure.tasks.items import Item
from bitqwen.measure.tasks.prompting import Prompter


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("5*2 = 10, so\n#### 18", "18", True),
        ("#### 18.00", "18", True),
        ("#### $1,234", "1234", True),
        ("####\n-3 apples", "-3", True),
        ("#### none", "18", False),
        ("first #### 7, no: #### 8", "8", True),
        ("The answer is 18.", "18", True),
        ("She has 3 + 4 = 7 left", "7", True),
        ("She has 3 + 4 = 7 left", "4", False),
        (r"So 9 or \boxed{11}, not 12", "11", True),
        ("25%", "25", True),
        ("no idea", "18", False),
        ("", "18", False),
        ("0.1", "1", False),
        ("Paris.", "paris", True),
        ("#### The Red  house!", "the red house", True),
        ("It is Paris", "paris", False),
        ("18" * 200, "18", False),
        ("#### NaN", "18", False),
    ],
)
def test_matching(said: str, right: str, expected: bool) -> None:
    assert exact_match.matches(said, right) is expected


@given(st.decimals(-(10**9), 10**9, places=2), st.text(max_size=40))
def test_a_marked_number_is_found_behind_any_text(value: Decimal, text: str) -> None:
    assert exact_match.final_number(f"{text}\n#### {value:,}") == value
    assert exact_match.matches(f"{text}\n#### {value}", str(value))


@given(st.text())
def test_any_text_can_be_looked_at(text: str) -> None:
    found = exact_match.final_number(text)
    assert found is None or found.is_finite()


def read(**fields: Any) -> exact_match.Problem:
    return exact_match.problem(Item("1", "file, line 1,", fields))


def test_items() -> None:
    assert read(question="Q?", answer="2+2=<<4>>4\n#### 4").answer == "4"
    assert read(prompt="Q?", expected=4).answer == "4"
    for fields, words in (
        ({"question": "Q?"}, "none of the fields answer"),
        ({"question": "Q?", "answer": [4]}, "neither text nor a number"),
        ({"question": "Q?", "answer": True}, "neither text nor a number"),
        ({"question": "Q?", "answer": "#### "}, "an empty field answer"),
        ({"answer": "4"}, "none of the fields question, prompt"),
    ):
        with pytest.raises(ModelFileError, match=words):
            read(**fields)


def test_numbers_are_asked_for_step_by_step(tokenizer: Tokenizer) -> None:
    chat, plain = Prompter(tokenizer, ChatTemplate()), Prompter(tokenizer, None)
    numeric, word = exact_match.Problem("1", "How many?", "4"), exact_match.Problem("2", "Who?", "Ana")
    assert "step by step" in tokenizer.decode(exact_match.encode(chat, numeric))
    assert "step by step" not in tokenizer.decode(exact_match.encode(chat, word))
    assert tokenizer.decode(exact_match.encode(plain, word)) == "Question: Who?\nAnswer:"
    assert "<|im_start|>assistant" in tokenizer.decode(exact_match.encode(chat, word))


def test_results(engine: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Answer("#### 4", 3, "stop"), Answer("I think", 3, "length")]
    asked: dict[str, Any] = {}
    monkeypatch.setattr(batching, "generate", lambda *_, **options: asked.update(options) or answers)
    problems = [exact_match.Problem("a", "2+2?", "4"), exact_match.Problem("b", "2+3?", "5")]
    result = exact_match.run(engine, Prompter(tokenizer, None), problems, name="sums", max_tokens=9)
    assert [(item.id, item.solved, item.remark) for item in result.items] == [
        ("a", True, ""),
        ("b", False, "cut off"),
    ]
    assert result.share.value == 0.5
    assert asked["max_tokens"] == 9
    assert asked["stop"] == ("\nQuestion:",)
