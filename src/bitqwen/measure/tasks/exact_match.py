r"""Questions with one right answer, compared as text or as a number, in the way of GSM8K.

An item is a JSON object with the question, ``question`` or ``prompt``, and the right answer, ``answer``,
``expected`` or ``target``. Of an answer with a working, "...\n#### 18", only what follows the mark counts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from . import batching
from .batching import Report
from .items import Item
from .prompting import Prompter
from .results import ItemResult, TaskResult

if TYPE_CHECKING:
    from bitqwen.engine import Model

DEFAULT_MAX_TOKENS = 512

_MARK = "####"
_INSTRUCTION = "\n\nThink step by step. End with a line that holds #### and the answer, a number alone."
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?|[-+]?\$?\.\d+")
_MAX_DIGITS = 100


@dataclass(frozen=True)
class Problem:
    """A question and its right answer."""

    id: str
    question: str
    answer: str


def problem(item: Item) -> Problem:
    """A problem from an item.

    Raises:
        ModelFileError: a field is missing or is not what it should be.
    """
    name, answer = item.first(("answer", "expected", "target"))
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise item.error(f"a field {name} that is neither text nor a number")
    text = str(answer).rsplit(_MARK, 1)[-1].strip()
    if not text:
        raise item.error(f"an empty field {name}")
    return Problem(item.id, item.text("question", "prompt"), text)


def encode(prompter: Prompter, each: Problem) -> list[int]:
    """The prompt of a problem; a numeric one is asked for step by step."""
    text = each.question.strip()
    if number(each.answer) is not None:
        text += _INSTRUCTION
    return (
        prompter.encode(text) if prompter.style == "chat" else prompter.encode(f"Question: {text}\nAnswer:")
    )


def run(
    model: Model,
    prompter: Prompter,
    problems: Sequence[Problem],
    *,
    name: str,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    sequences: int = batching.DEFAULT_SEQUENCES,
    progress: Report | None = None,
) -> TaskResult:
    """Lets a model answer, greedily, and compares.

    Raises:
        ContextLengthError: a question with its answer may be longer than the model's context.
    """
    started = time.perf_counter()
    answers = batching.generate(
        model,
        prompter.tokenizer,
        [encode(prompter, each) for each in problems],
        max_tokens=max_tokens,
        # A completion would go on to invent the next question.
        stop=() if prompter.style == "chat" else ("\nQuestion:",),
        sequences=sequences,
        progress=progress,
    )
    writing = time.perf_counter() - started
    items = [
        ItemResult(
            each.id,
            matches(answer.text, each.answer),
            answer.text,
            "" if answer.finish_reason == "stop" else "cut off",
        )
        for each, answer in zip(problems, answers, strict=True)
    ]
    return TaskResult(
        name,
        "exact match",
        tuple(items),
        time.perf_counter() - started,
        tokens=sum(answer.tokens for answer in answers),
        writing_seconds=writing,
    )


def matches(said: str, right: str) -> bool:
    """Whether an answer is the right one: the same number, or else the same words."""
    expected = number(right)
    if expected is None:
        return _words(said.rsplit(_MARK, 1)[-1]) == _words(right)
    found = final_number(said)
    return found is not None and found == expected


def final_number(text: str) -> Decimal | None:
    """The number that an answer comes to: after its last ####, in its last box, or the last of all."""
    if _MARK in text:
        text = text.rsplit(_MARK, 1)[-1]
        found = _NUMBER.search(text)
        return None if found is None else number(found[0])
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    numbers = _NUMBER.findall(boxes[-1] if boxes else text)
    return number(numbers[-1]) if numbers else None


def number(text: str) -> Decimal | None:
    """A number as people write it: 1,234.50, $7, 25 %; ``None`` for anything else."""
    plain = re.sub(r"[,\s$%]", "", text).rstrip(".")
    if not plain or len(plain) > _MAX_DIGITS:
        return None
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
