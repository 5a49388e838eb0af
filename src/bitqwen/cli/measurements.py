"""Measurements while they run, and what they found as tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bitqwen.cli import terminal

if TYPE_CHECKING:
    from bitqwen.measure.evaluation import TextResult
    from bitqwen.measure.statistics import Estimate, McNemar
    from bitqwen.measure.tasks.results import TaskResult


@contextlib.contextmanager
def progress(*, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, where that is a terminal: what is under way, done, and in all."""
    import sys

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disable = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=terminal.stderr(), transient=True, disable=disable) as bar:
        line = bar.add_task("loading", total=None)
        yield lambda what, done, total: bar.update(line, description=what, completed=done, total=total)


def print_texts(results: Sequence[TextResult]) -> None:
    """Prints what was measured on texts, a column a text."""
    if not results:
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for result in results:
        table.add_column(escape(result.name), justify="right")
    for name, cell in _TEXT_ROWS.items():
        cells = [cell(result) for result in results]
        if any(cells):
            table.add_row(name, *cells)
    terminal.stdout().print(table)


def _perplexity(result: TextResult) -> str:
    return f"{result.perplexity.value:.4f} ± {result.perplexity.standard_error:.4f}"


def _reference_perplexity(result: TextResult) -> str:
    found = result.reference_perplexity
    return "" if found is None else f"{found.value:.4f} ± {found.standard_error:.4f}"


def _of_divergence(cell: Callable[[Any], str]) -> Callable[[TextResult], str]:
    return lambda result: "" if result.divergence is None else cell(result.divergence)


def _interval(estimate: Estimate, digits: int, factor: float = 1) -> str:
    low, value, high = (factor * each for each in (estimate.low, estimate.value, estimate.high))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _left_out(divergence: Any) -> str:
    found = divergence.truncation
    return "" if found is None else f"{found.low:.4f} to {found.high:.4f}"


_TEXT_ROWS: dict[str, Callable[[TextResult], str]] = {
    "tokens scored": lambda result: f"{result.perplexity.tokens:,}",
    "perplexity": _perplexity,
    "of the reference": _reference_perplexity,
    "perplexity ratio": _of_divergence(lambda found: f"{found.perplexity_ratio:.4f}"),
    "mean log ratio": _of_divergence(lambda found: _interval(found.log_ratio, 4)),
    "KL divergence": _of_divergence(lambda found: _interval(found.kl, 4)),
    "  whatever was not saved": _of_divergence(_left_out),
    "  median": _of_divergence(lambda found: f"{found.percentiles[50]:.4f}"),
    "  90 %": _of_divergence(lambda found: f"{found.percentiles[90]:.4f}"),
    "  95 %": _of_divergence(lambda found: f"{found.percentiles[95]:.4f}"),
    "  99 %": _of_divergence(lambda found: f"{found.percentiles[99]:.4f}"),
    "  maximum": _of_divergence(lambda found: f"{found.maximum:.4f}"),
    "same top token, %": _of_divergence(lambda found: _interval(found.same_top, 2, 100)),
    "RMS Δp, %": _of_divergence(lambda found: f"{100 * found.rms_delta_p:.3f}"),
}


def print_tasks(outcomes: Sequence[tuple[TaskResult, McNemar | None]]) -> None:
    """Prints tasks' results, each with the paired test against the reference's, if there was one."""
    if not outcomes:
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("task", "metric", "solved", "%", "reference", "p (McNemar)"):
        table.add_column(heading, justify="left" if heading in {"task", "metric"} else "right")
    for result, test in outcomes:
        solved = sum(item.solved for item in result.items)
        theirs = "" if test is None else str(solved - test.only_model + test.only_reference)
        table.add_row(
            escape(result.task),
            result.metric,
            f"{solved} of {len(result.items)}",
            _interval(result.share, 1, 100),
            theirs,
            "" if test is None else f"{test.p_value:.3g}",
        )
    terminal.stdout().print(table)
    for result, _ in outcomes:
        if result.tokens:
            seconds = result.writing_seconds
            rate = result.tokens / seconds
            terminal.say(f"{result.task}: {result.tokens:,} tokens in {seconds:.0f} s, {rate:.1f} tokens/s")
    for warning in dict.fromkeys(warning for result, _ in outcomes for warning in result.warnings):
        terminal.say(f"warning: {warning}")
