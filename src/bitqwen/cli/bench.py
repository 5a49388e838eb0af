"""``bitqwen bench``: how fast models run here, beside what the machine can do at most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bitqwen.cli import measurements, options, terminal
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
    no_tuning: options.NoTuning = False,
    exact_head: options.ExactHead = False,
    numa: options.Numa = False,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            help="Also run a peer, in turns: llama-cpp-python, ik-llama-cpp-python, the path of a "
            "llama-bench program, or FILE.gguf for bitqwen on another model; NAME=FILE.gguf is a peer on "
            "another model. May be given again.",
            metavar="PEER[=FILE]",
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
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Also show where a token's time goes, operation by operation, from one more repetition.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Also draw the results, as .svg or .png: speed by bits, quality by bytes where the files "
            "carry receipts, the roofline, speed by depth; with --compare, of both reports.",
            metavar="FILE",
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
    from bitqwen.measure.bench import plots, run, tables, tests

    if plot is not None:
        plots.check(plot)
    if compare is not None:
        terminal.print_line(tables.compare(*compare))
        if plot is not None:
            plots.draw([tables.read(path) for path in compare], plot)
        return
    if not models:
        raise UsageError("MODEL is missing.", hint="For example: bitqwen bench qwen.gguf -p 512 -n 128")
    chosen = tests(
        *(_numbers(text, flag) for text, flag in ((prompt, "-p"), (generate, "-n"), (depth, "-d")))
    )
    sides = _sides(models, threads, isa, scheme, kv, against or [], exact_head=exact_head, numa=numa)
    with measurements.progress(shown=not quiet) as advance:
        report = run(sides, chosen, repetitions=repetitions, profile=profile, progress=advance)
    for sentence in dict.fromkeys(row.facts.get("placement") for row in report.rows):
        if sentence:
            terminal.say(sentence, quiet=quiet)
    terminal.print_line(tables.text(report, form))
    if plot is not None:
        drawn = plots.draw([report.as_json()], plot)
        terminal.say(f"{plot}: {', '.join(drawn)}", quiet=quiet)


def _sides(
    models: list[str],
    threads: str | None,
    isa: str | None,
    scheme: str,
    kv: str,
    against: list[str],
    *,
    exact_head: bool,
    numa: bool,
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
    sides: list[Side] = []
    peers = [_peer(text) for text in against]
    for model in models:
        whole = model.lower().endswith(".gguf")
        paths = [gguf_path(model, scheme=name) for name in (["w4"] if whole else scheme.split(","))]
        for path in paths:
            for count in counts:
                own = {"exact_head": exact_head, "numa": numa}
                sides += [Side("bitqwen", path, count, name, kv, **own) for name in isas]
                sides += [
                    Side(name, other or path, count, None, kv, peer=True, **own) for name, other in peers
                ]
    return list(dict.fromkeys(sides))


def _peer(text: str) -> tuple[str, Path | None]:
    """``NAME``, ``NAME=FILE.gguf`` or ``FILE.gguf`` -> the engine, and its model if it is another one."""
    name, _, file = text.rpartition("=") if text.lower().endswith(".gguf") else (text, "", "")
    if file and not Path(file).is_file():
        raise UsageError(f"--against {text}: there is no file {file}.", hint="Give the path of a GGUF file.")
    return name or "bitqwen", Path(file) if file else None


def _numbers(text: str, flag: str) -> list[int]:
    """``"1,2"`` -> [1, 2]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{flag} {text}: not a number.", hint=f"Numbers go with commas: {flag} 128,512"
        ) from None
