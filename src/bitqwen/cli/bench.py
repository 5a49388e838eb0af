"""``bitqwen bench``: how fast models run here, beside what the machine can do at most."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bitqwen.cli import options, terminal
from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen.measure.bench import Side

TESTS = "Tests"
SIDES = "Sides"


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="GGUF files, or else checkpoint folders or hub ids, which are converted first.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option("--n-prompt", "-p", help="Tokens of prefill.", metavar="N,...", rich_help_panel=TESTS),
    ] = "512",
    generate: Annotated[
        str,
        typer.Option("--n-gen", "-n", help="Tokens to decode.", metavar="N,...", rich_help_panel=TESTS),
    ] = "128",
    depth: Annotated[
        str,
        typer.Option(
            "--n-depth", "-d", help="Tokens already in the context.", metavar="N,...", rich_help_panel=TESTS
        ),
    ] = "0",
    repetitions: Annotated[
        int,
        typer.Option(
            "--repetitions",
            "-r",
            min=2,
            help="Rounds; at least 2, because a speed without its spread says nothing.",
            metavar="N",
            rich_help_panel=TESTS,
        ),
    ] = 5,
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads",
            "-t",
            help="Threads; by default one a core.",
            metavar="N,...",
            show_default=False,
            rich_help_panel=SIDES,
        ),
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(
            "--isa",
            help="Instruction sets to force; by default the best. `bitqwen doctor` lists them.",
            metavar="NAME,...",
            show_default=False,
            rich_help_panel=SIDES,
        ),
    ] = None,
    scheme: Annotated[
        str,
        typer.Option(
            "--scheme",
            help="Schemes for a MODEL that is no GGUF file.",
            metavar="NAME,...",
            rich_help_panel=SIDES,
        ),
    ] = "w4",
    kv: options.KvType = "f16",
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Also run a peer, in turns: llama-cpp-python, or the path of a llama-bench program; may be "
            "given again.",
            metavar="PEER",
            show_default=False,
            rich_help_panel=SIDES,
        ),
    ] = None,
    form: Annotated[
        Literal["md", "csv", "json", "jsonl"],
        typer.Option("--output", "-o", help="How to print the results.", rich_help_panel=options.OUTPUT),
    ] = "md",
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            help="Measure nothing; compare two reports that were written with -o json.",
            metavar="A B",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure speed: rows as llama-bench has them, and how near they come to the machine's limits.

    Every model, number of threads and instruction set takes its turn in each round, and each round
    measures the read bandwidth and the int8 peak beside them. MB/token is what decoding a token must read:
    packed weights, and the KV cache so far. Energy is read from the machine's own counters or not given.
    """
    from bitqwen.measure.bench import run, tables, tests

    if compare is not None:
        terminal.print_line(tables.compare(*compare))
        return
    if not models:
        raise UsageError("MODEL is missing.", hint="For example: bitqwen bench qwen.gguf -p 512 -n 128")
    chosen = tests(
        *(_numbers(text, flag) for text, flag in ((prompt, "-p"), (generate, "-n"), (depth, "-d")))
    )
    sides = _sides(models, threads, isa, scheme, kv, against or [])
    with _progress(shown=not quiet) as advance:
        report = run(sides, chosen, repetitions=repetitions, progress=advance)
    terminal.print_line(tables.text(report, form))


def _sides(
    models: list[str], threads: str | None, isa: str | None, scheme: str, kv: str, against: list[str]
) -> list[Side]:
    from bitqwen import _native
    from bitqwen.generation.loading import gguf_path
    from bitqwen.measure.bench import Side
    from bitqwen.measure.machine import machine

    counts = _numbers(threads, "-t") if threads else [machine().usable_cpus]
    if min(counts) < 1:
        raise UsageError("-t 0: at least one thread is needed.")
    isas = isa.split(",") if isa else [None]
    usable = _native.usable_isas()
    for name in isas:
        if name is not None and name not in usable:
            raise UsageError(
                f"--isa {name}: this CPU and build cannot run it.", hint="Allowed: " + ", ".join(usable) + "."
            )
    sides = []
    for model in models:
        whole = model.lower().endswith(".gguf")
        paths = [gguf_path(model, scheme=name) for name in (["w4"] if whole else scheme.split(","))]
        for path in paths:
            for count in counts:
                sides += [Side("bitqwen", path, count, name, kv) for name in isas]
                sides += [Side(peer, path, count, None, kv) for peer in against]
    return list(dict.fromkeys(sides))


def _numbers(text: str, flag: str) -> list[int]:
    """``"1,2"`` -> [1, 2]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{flag} {text}: not a number.", hint=f"Numbers go with commas: {flag} 128,512"
        ) from None


@contextlib.contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr, where that is a terminal."""
    import sys

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disable = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=terminal.stderr(), transient=True, disable=disable) as bar:
        line = bar.add_task("opening", total=None)
        yield lambda what, done, total: bar.update(line, description=what, completed=done, total=total)
