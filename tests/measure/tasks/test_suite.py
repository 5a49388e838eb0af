from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitqwen.engine import Model
from bitqwen.errors import UsageError
from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.measure.tasks.prompting import Prompter
from bitqwen.measure.tasks.suite import RunOptions, Task

ITEMS = {
    "multiple-choice": [{"question": "the dog", "choices": ["fox", "the quick dog"], "answer": 0}] * 3,
    "exact-match": [{"question": "the dog", "answer": "4"}] * 3,
    "humaneval": [{"prompt": "def f():\n", "entry_point": "f", "test": "def check(f): f()"}] * 3,
}


def write(folder: Path, kind: str) -> str:
    path = folder / "my items.jsonl"
    path.write_text("\n".join(map(json.dumps, ITEMS[kind])))
    return f"{kind}={path}"


@pytest.mark.parametrize("kind", list(ITEMS))
@pytest.mark.parametrize("style", ["chat", "completion"])
def test_every_task_on_the_engine(
    kind: str, style: str, tiny_gguf: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    task = Task(write(tmp_path, kind), limit=2)
    prompter = Prompter(tokenizer, ChatTemplate() if style == "chat" else None)
    options = RunOptions(max_tokens=4, sequences=2, allow_code_execution=True)
    # The context is neither too small nor larger than it need be.
    context = task.context(prompter, options)
    roomy = Model.open(tiny_gguf, threads=1, context=context, cache_positions=2 * context + 64)
    results = task.run(roomy, prompter, options)
    assert [result.task for result in results] == [f"{kind} my items"] * len(results)
    assert all(len(result.items) == 2 for result in results)
    assert all(item.id.startswith("line ") for result in results for item in result.items)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("chess", "no task 'chess'; there are: humaneval, multiple-choice, exact-match"),
        ("exact-match", "needs a JSONL file"),
        ("multiple-choice=", "needs a JSONL file"),
    ],
)
def test_wrong_choices(choice: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Task(choice)


def test_consent_is_asked_for_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs programs"):
        Task(write(tmp_path, "humaneval")).check(RunOptions())
    Task(write(tmp_path, "humaneval")).check(RunOptions(allow_code_execution=True))
    Task(write(tmp_path, "exact-match")).check(RunOptions())
