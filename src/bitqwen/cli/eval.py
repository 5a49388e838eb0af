"""``bitqwen eval``: what a model predicts, beside a reference, and which tasks it solves."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bitqwen.cli import measurements, options, terminal
from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen.measure.evaluation import TextResult
    from bitqwen.measure.tasks.results import TaskResult

TEXTS = "Texts"
TASKS = "Tasks"


def eval(
    model: options.Model,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            help="Compare with this model (a checkpoint is taken in f16), or with a saved reference.",
            metavar="SOURCE",
            show_default=False,
            rich_help_panel=TEXTS,
        ),
    ] = None,
    save_reference: Annotated[
        Path | None,
        typer.Option(
            "--save-reference",
            help="Save MODEL's predictions, to compare other models with later.",
            metavar="FILE",
            show_default=False,
            rich_help_panel=TEXTS,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text",
            help="A text to measure on: NAME=PATH, or prose or code, which come with bitqwen; may be given "
            "again. By default both of these.",
            metavar="NAME[=PATH]",
            show_default=False,
            rich_help_panel=TEXTS,
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            "-c",
            help="Tokens of a chunk, of which the second half is scored; by default 512.",
            metavar="N",
            show_default=False,
            rich_help_panel=TEXTS,
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks",
            min=1,
            help="Use only the first N chunks of each text.",
            metavar="N",
            show_default=False,
            rich_help_panel=TEXTS,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help="humaneval, multiple-choice=FILE or exact-match=FILE, a JSONL file; may be given again. "
            "Texts are then measured only if --text, --save-reference or a saved reference is given too.",
            metavar="NAME[=FILE]",
            show_default=False,
            rich_help_panel=TASKS,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Take only the first N items of a task.",
            metavar="N",
            show_default=False,
            rich_help_panel=TASKS,
        ),
    ] = None,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution",
            help="Run the programs that the model writes for humaneval, in a sandbox.",
            rich_help_panel=TASKS,
        ),
    ] = False,
    style: Annotated[
        Literal["auto", "chat", "completion"],
        typer.Option(
            "--style",
            help="Ask in the model's chat template, or let it complete plain text; auto: chat if it has one.",
            rich_help_panel=TASKS,
        ),
    ] = "auto",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            "-n",
            min=1,
            help="End an answer after this many tokens; by default 512.",
            metavar="N",
            show_default=False,
            rich_help_panel=TASKS,
        ),
    ] = None,
    sequences: Annotated[
        int,
        typer.Option(
            "--sequences", min=1, help="Answers under way at once.", metavar="N", rich_help_panel=TASKS
        ),
    ] = 16,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            help="Pair the tasks' outcomes with those in this report, written with -o before.",
            metavar="FILE",
            show_default=False,
            rich_help_panel=TASKS,
        ),
    ] = None,
    threads: options.Threads = None,
    kv: options.KvType = "f16",
    no_tuning: options.NoTuning = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the report as JSON.",
            metavar="FILE",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure a model: perplexity, divergence from a reference, and tasks.

    Texts are cut into chunks, and the second half of each is scored, as llama-perplexity does it. With a
    reference, both models run side by side and the KL divergence between their predictions is measured
    token by token. Intervals are 95 % confidence intervals. Tasks are answered greedily, and two models'
    outcomes are compared by McNemar's exact test.
    """
    from bitqwen import __version__, texts
    from bitqwen.generation.loading import gguf_path
    from bitqwen.measure import evaluation, runner
    from bitqwen.measure.passages import DEFAULT_CONTEXT
    from bitqwen.measure.reference import ReferenceFile, is_reference
    from bitqwen.measure.tasks.suite import RunOptions, Task

    saved = reference is not None and is_reference(reference)
    _check(
        saved=saved, reference=reference, save_reference=save_reference, text=text, context=context, task=task
    )
    run_options = RunOptions(max_tokens, sequences, allow_code_execution)
    tasks = [Task(choice, limit) for choice in task or ()]
    for each in tasks:
        each.check(run_options)
    with_texts = bool(not tasks or text or save_reference or saved)
    loaded = {} if saved or not with_texts else texts.load_texts(text or texts.packaged_names())
    earlier = _earlier(baseline)

    shown = not (quiet or json)
    path = gguf_path(model)
    other = gguf_path(reference, scheme="f16") if reference is not None and not saved else None
    engine = runner.EngineOptions(threads, kv)
    asked = None if style == "auto" else style
    text_results: list[TextResult] = []
    if with_texts:
        opened = ReferenceFile(reference) if saved and reference is not None else None
        with opened or contextlib.nullcontext(), measurements.progress(shown=shown) as advance:
            text_results = runner.measure_texts(
                path,
                loaded,
                reference=opened or other,
                save=save_reference,
                context=context or DEFAULT_CONTEXT,
                chunks=chunks,
                engine=engine,
                progress=lambda step: advance(f"scoring {step.text}", step.done, step.total),
            )
    outcomes: list[tuple[TaskResult, Any]] = []
    if tasks:
        with measurements.progress(shown=shown) as advance:
            results = runner.run_tasks(path, tasks, run_options, style=asked, engine=engine, progress=advance)
            if other is not None:
                theirs = runner.run_tasks(
                    other,
                    tasks,
                    run_options,
                    style=asked,
                    engine=engine,
                    progress=lambda name, done, total: advance(f"{name}, the reference", done, total),
                )
                earlier = {(each.task, each.metric): _outcomes(each) for each in theirs}
        outcomes = [(result, _paired(result, earlier)) for result in results]

    report = {
        "bitqwen": __version__,
        "model": runner.about(path),
        "reference": str(reference) if saved else (None if other is None else runner.about(other)),
        "texts": [evaluation.as_json(result) for result in text_results],
        "tasks": [
            {**result.as_json(), "paired": None if test is None else vars(test)} for result, test in outcomes
        ],
        "settings": {"kv": kv, "style": style, "max_tokens": max_tokens, "limit": limit},
    }
    if output is not None:
        _write(output, report)
    if json:
        terminal.print_json(report)
    else:
        measurements.print_texts(text_results)
        measurements.print_tasks(outcomes)
        if save_reference is not None and not quiet:
            terminal.say(f"Saved as a reference: {save_reference}")


def _check(
    *,
    saved: bool,
    reference: str | None,
    save_reference: Path | None,
    text: list[str] | None,
    context: int | None,
    task: list[str] | None,
) -> None:
    """Refuses options that contradict each other, before anything is loaded."""
    if save_reference is not None and reference is not None:
        raise UsageError(
            "--save-reference and --reference were both given.",
            hint="Save the reference first: bitqwen eval REFERENCE --save-reference FILE",
        )
    if saved and (text or context):
        raise UsageError(
            f"{reference} is a saved reference, which brings its own texts and context.",
            hint="Leave --text and --context out.",
        )
    if task and len(set(task)) != len(task):
        raise UsageError("A task was given twice.")


def _earlier(baseline: Path | None) -> dict[tuple[str, str], dict[str, bool]]:
    from bitqwen.measure.tasks.results import read_outcomes

    return {} if baseline is None else read_outcomes(baseline)


def _outcomes(result: TaskResult) -> dict[str, bool]:
    from bitqwen.measure.tasks.results import outcomes

    return outcomes(result)


def _paired(result: TaskResult, earlier: dict[tuple[str, str], dict[str, bool]]) -> Any:
    from bitqwen.measure.tasks.results import paired

    theirs = earlier.get((result.task, result.metric))
    return None if theirs is None else paired(_outcomes(result), theirs)


def _write(path: Path, report: dict[str, Any]) -> None:
    import json

    from bitqwen.files import atomic_file

    with atomic_file(path) as file:
        file.write(json.dumps(report, ensure_ascii=False, indent=2, allow_nan=False).encode() + b"\n")
