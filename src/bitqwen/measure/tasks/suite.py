"""The tasks by name: their items are read, and their prompts made, before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitqwen.errors import UsageError

from . import batching, choices, exact_match, humaneval
from .items import read_items
from .prompting import Prompter
from .results import TaskResult

if TYPE_CHECKING:
    from bitqwen.engine import Model

Report = Callable[[int, int], None]

NAMES = ("humaneval", "multiple-choice", "exact-match")


@dataclass(frozen=True)
class RunOptions:
    """How tasks are run.

    Attributes:
        max_tokens: the most for one answer; ``None`` for the task's own.
        sequences: answers under way at once.
        allow_code_execution: whether programs that the model writes may be run.
    """

    max_tokens: int | None = None
    sequences: int = batching.DEFAULT_SEQUENCES
    allow_code_execution: bool = False


class Task:
    """A task with its items.

    Attributes:
        name: its kind, with the file's name where one was given.
        kind: one of :data:`NAMES`.

    Args:
        choice: a name of :data:`NAMES`, or NAME=PATH of a JSONL file.
        limit: take only the first items; ``None`` for all.

    Raises:
        UsageError: an unknown name, or a file is missing in it.
        ModelFileError: the file cannot be read, or an item is not what the task needs.
    """

    def __init__(self, choice: str, limit: int | None = None) -> None:
        kind, _, path = choice.partition("=")
        if kind not in NAMES:
            raise UsageError(f"There is no task {kind!r}; there are: {', '.join(NAMES)}.")
        if not path and kind != "humaneval":
            raise UsageError(
                f"The task {kind} needs a JSONL file.", hint=f"For example: --task {kind}=questions.jsonl"
            )
        self.kind = kind
        file = Path(path).expanduser() if path else humaneval.data_file()
        self.name = f"{kind} {file.stem}" if path else kind
        items = read_items(file, limit)
        self._questions = [choices.question(item) for item in items] if kind == "multiple-choice" else []
        self._problems = [exact_match.problem(item) for item in items] if kind == "exact-match" else []
        self._programs = [humaneval.problem(item) for item in items] if kind == "humaneval" else []

    def check(self, options: RunOptions) -> None:
        """Refuses what the user has not allowed.

        Raises:
            UsageError: the task runs programs, and that is not allowed.
        """
        if self.kind == "humaneval":
            humaneval.require_consent(allow=options.allow_code_execution)

    def sequences(self, options: RunOptions) -> int:
        """How many contexts the KV cache must hold."""
        # A question's choices share its beginning, but may be fed to sessions that share no block.
        return 2 if self.kind == "multiple-choice" else options.sequences

    def context(self, prompter: Prompter, options: RunOptions) -> int:
        """The longest sequence of the task, in tokens."""
        if self.kind == "multiple-choice":
            pairs = (
                choices.encode_pair(prompter.tokenizer, each.prompt, choice)
                for each in self._questions
                for choice in each.choices
            )
            return max(len(prompt) + len(choice) for prompt, choice in pairs)
        if self.kind == "exact-match":
            prompts = [exact_match.encode(prompter, each) for each in self._problems]
        else:
            prompts = [humaneval.encode(prompter, each) for each in self._programs]
        return batching.context_for(prompts, self._max_tokens(options))

    def run(
        self, model: Model, prompter: Prompter, options: RunOptions, progress: Report | None = None
    ) -> list[TaskResult]:
        """Runs the task; one result a figure.

        Raises:
            ContextLengthError: an item is longer than the model's context.
            UsageError: programs may not be run.
        """
        if self.kind == "multiple-choice":
            return choices.run(model, prompter.tokenizer, self._questions, name=self.name, progress=progress)
        if self.kind == "exact-match":
            return [
                exact_match.run(
                    model,
                    prompter,
                    self._problems,
                    name=self.name,
                    max_tokens=self._max_tokens(options),
                    sequences=options.sequences,
                    progress=progress,
                )
            ]
        return [
            humaneval.run(
                model,
                prompter,
                self._programs,
                allow_code_execution=options.allow_code_execution,
                name=self.name,
                max_tokens=self._max_tokens(options),
                sequences=options.sequences,
                progress=progress,
            )
        ]

    def _max_tokens(self, options: RunOptions) -> int:
        own = humaneval.DEFAULT_MAX_TOKENS if self.kind == "humaneval" else exact_match.DEFAULT_MAX_TOKENS
        return own if options.max_tokens is None else options.max_tokens
