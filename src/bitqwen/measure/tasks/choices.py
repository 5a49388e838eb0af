r"""Multiple choice by log-likelihood: the choice that the model finds likeliest after the question.

An item is a JSON object with

- the question: ``question`` (asked as "Question: ...\nAnswer:"), or ``prompt``, ``ctx``, ``context`` or
  ``query`` (taken as it stands; the choice goes on with it);
- the choices: ``choices``, ``endings`` or ``options``, a list of texts, or an object with lists ``text``
  and ``label``;
- the right one: ``answer``, ``label``, ``gold``, ``expected_index``, ``answer_index`` or ``answerKey``: its
  place, counted from 0, its label, its letter, or its text.

Two figures come out, as in lm-evaluation-harness: "accuracy", by the sum of the choice's
log-probabilities, and "accuracy per byte", by that sum over the choice's length, which does not favour
short choices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.measure.distributions import negative_log_likelihood
from bitqwen.measure.passages import ScoringModel, ScoringSession

from .items import Item
from .results import ItemResult, TaskResult

_CONTINUED = ("prompt", "ctx", "context", "query")
_CHOICES = ("choices", "endings", "options")
_ANSWERS = ("answer", "label", "gold", "expected_index", "answer_index", "answerKey")

Report = Callable[[int, int], None]


class _ForkingSession(ScoringSession, Protocol):
    def fork(self) -> _ForkingSession: ...


class ChoosingModel(ScoringModel, Protocol):
    """What this task needs of :class:`bitqwen.engine.Model`."""

    def session(self) -> _ForkingSession:
        """A new, empty sequence."""


@dataclass(frozen=True)
class Question:
    """A multiple-choice question: what stands before the choices, the choices, and which is right."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int


def question(item: Item) -> Question:
    """A question from an item.

    Raises:
        ModelFileError: a field is missing, or is not what it should be.
    """
    if item.fields.get("question") is not None:
        prompt = f"Question: {item.text('question').strip()}\nAnswer:"
    else:
        prompt = item.text(*_CONTINUED)
    _, choices = item.first(_CHOICES)
    labels: Sequence[object] = ()
    if isinstance(choices, dict):
        labels = choices.get("label") or ()
        choices = choices.get("text")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        raise item.error("choices that are not two texts or more")
    name, given = item.first(_ANSWERS)
    place = _place(given, choices, labels)
    if place is None:
        raise item.error(f"a field {name} that names none of its {len(choices)} choices")
    return Question(item.id, prompt, tuple(choices), place)


def _place(given: object, choices: Sequence[str], labels: Sequence[object]) -> int | None:
    """Which choice an answer names: a label, a place from 0, a letter or the choice's text."""
    if isinstance(given, str) and given in labels:
        return list(labels).index(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return given if 0 <= given < len(choices) else None
    if not isinstance(given, str):
        return None
    text = given.strip()
    if text in choices:
        return list(choices).index(text)
    if text.isascii() and text.isdigit() and int(text[:6]) < len(choices):
        return int(text[:6])
    letter = ord(text.upper()) - ord("A") if len(text) == 1 else -1
    return letter if 0 <= letter < len(choices) else None


def run(
    model: ChoosingModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    name: str,
    progress: Report | None = None,
) -> list[TaskResult]:
    """Lets a model choose: its accuracy, and its accuracy per byte.

    Raises:
        ContextLengthError: a question with one of its choices is longer than the model's context.
        CheckpointError: the model's logits are not finite.
    """
    started = time.perf_counter()
    plain: list[ItemResult] = []
    per_byte: list[ItemResult] = []
    for done, each in enumerate(questions):
        if progress is not None:
            progress(done, len(questions))
        scores = log_likelihoods(model, tokenizer, each)
        lengths = [len(choice.encode()) for choice in each.choices]
        for results, values in (
            (plain, scores),
            (per_byte, [score / length for score, length in zip(scores, lengths, strict=True)]),
        ):
            chosen = max(range(len(values)), key=values.__getitem__)
            results.append(ItemResult(each.id, chosen == each.answer, str(chosen)))
    if progress is not None:
        progress(len(questions), len(questions))
    seconds = time.perf_counter() - started
    return [
        TaskResult(name, "accuracy", tuple(plain), seconds),
        TaskResult(name, "accuracy per byte", tuple(per_byte), seconds),
    ]


def log_likelihoods(model: ChoosingModel, tokenizer: Tokenizer, question: Question) -> list[float]:
    """The log p(choice | question) of each choice; the part that they share is computed once."""
    sequences = [encode_pair(tokenizer, question.prompt, choice) for choice in question.choices]
    wholes = [prompt + choice for prompt, choice in sequences]
    # Where a choice changes how the question's end is cut into tokens, less is shared.
    shared = min(len(prompt) for prompt, _ in sequences)
    while any(whole[:shared] != wholes[0][:shared] for whole in wholes):
        shared -= 1
    # At least one token must be fed to fork from, and at least one after it to score.
    stem = model.session()
    scores = []
    try:
        if shared > 1:
            stem.feed(wholes[0][: shared - 1], logits="none")
        fed = max(shared - 1, 0)
        for (prompt, choice), whole in zip(sequences, wholes, strict=True):
            branch = stem.fork()
            try:
                logits = branch.feed(whole[fed:-1], logits="all")
            finally:
                branch.close()
            assert logits is not None
            rows = logits[len(prompt) - 1 - fed :, : tokenizer.vocab_size]
            scores.append(
                -sum(negative_log_likelihood(row, token) for row, token in zip(rows, choice, strict=True))
            )
    finally:
        stem.close()
    return scores


def encode_pair(tokenizer: Tokenizer, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of the choice that goes on with it.

    They are encoded as one text, so that they are cut as the model is used to; blanks at the prompt's end
    go to the choice, and a choice that no blank precedes gets one.
    """
    stem = prompt.rstrip()
    gap = prompt[len(stem) :] or ("" if choice[:1].isspace() else " ")
    whole = tokenizer.encode(stem + gap + choice)
    start = len(tokenizer.encode(stem))
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        whole.insert(0, tokenizer.bos_id)
        start += 1
    # There must be something before the first scored token, and something to score.
    start = min(max(start, 1), len(whole) - 1)
    return whole[:start], whole[start:]
