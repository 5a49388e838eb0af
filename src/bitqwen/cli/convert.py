"""``bitqwen convert``: a checkpoint becomes a GGUF file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitqwen.cli import calibrations, fitting, options, receipts, terminal
from bitqwen.errors import BitqwenError, UsageError

if TYPE_CHECKING:
    from bitqwen.convert import ConversionReport, TensorReport


def convert(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="A checkpoint folder, a hub id, package:NAME, or a .gguf file (requantised).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write.", metavar="FILE", show_default=False),
    ] = None,
    scheme: Annotated[
        str, typer.Option("--scheme", help="How weights are stored; see --list-schemes.", metavar="NAME")
    ] = "w4",
    embedding: Annotated[
        str | None,
        typer.Option(
            "--embedding",
            help="Type of the embedding, instead of the scheme's.",
            metavar="TYPE",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            help="Type of the output head, instead of the scheme's.",
            metavar="TYPE",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            help="Choose codes by what the layers see on this text, a file; 'shipped' takes prose, code and "
            "conversation that come with bitqwen and Python, 'self' lets the model write the text, 'default' "
            "has half of each; an imatrix in .gguf says itself what they see. Takes tens of minutes instead "
            "of one; below 5 bits it pays.",
            metavar="FILE|default|shipped|self",
            show_default=False,
        ),
    ] = None,
    calibration_tokens: Annotated[
        int,
        typer.Option("--calibration-tokens", help="Tokens of the text to use.", metavar="N"),
    ] = 16384,
    save_importance: Annotated[
        Path | None,
        typer.Option(
            "--save-importance",
            help="Also write what the layers see on the text, as an imatrix that llama-quantize reads.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="How a calibrated conversion quantises: fit, or fit+STEP[:NUMBER]+... with the steps "
            "rotate, propagate, gptq, descent, codes and distil; by default "
            "fit+rotate+gptq+descent+distil, and fit+rotate with an imatrix.",
            metavar="CHAIN",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            "--fit",
            help="Choose each tensor's type so that the file has at most this size and is the best: "
            "700MB, 1.5GB. Takes the place of --scheme.",
            metavar="SIZE",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            "--bits",
            help="The same for this many bits per weight, over all tensors.",
            metavar="B",
            show_default=False,
        ),
    ] = None,
    receipt: Annotated[
        bool | None,
        typer.Option(
            "--receipt/--no-receipt",
            help="Measure the file against its source, print what was lost, and note it in the file. By "
            "default where the source in f16 fits in memory beside the file.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Use a scheme that this model was not trained for.")
    ] = False,
    threads: options.Threads = None,
    revision: options.Revision = None,
    token: options.Token = None,
    offline: options.Offline = False,
    list_schemes: Annotated[
        bool, typer.Option("--list-schemes", help="Show the schemes and when to use them.")
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Convert a checkpoint to a GGUF file.

    One tensor at a time: memory stays small whatever the model's size. The file appears under its name
    only when it is complete.
    """
    if list_schemes:
        _list_schemes(as_json=json)
        return
    if source is None or output is None:
        missing = "SOURCE" if source is None else "--output FILE"
        raise UsageError(
            f"{missing} is missing.", hint="For example: bitqwen convert ./checkpoint -o qwen.gguf"
        )
    terminal.hub_progress(shown=not (quiet or json))
    chain = calibrations.calibration(calibration, calibration_tokens, recipe, save_importance)
    hub = {"revision": revision, "token": token, "offline": offline}
    if chain is not None:
        chain = calibrations.written(
            chain, calibration, source, output, quiet=quiet or json, threads=threads, **hub
        )
    chosen = None
    if fit is not None or bits is not None:
        if embedding is not None or head is not None or (fit is not None and bits is not None):
            raise UsageError("--fit and --bits choose every type themselves, and one of them is enough.")
        chosen = fitting.plans(source, fit, bits, chain, quiet=quiet or json, threads=threads, **hub)
        if chain is not None:
            chain = dataclasses.replace(chain, first_weights=chosen.first_weights)
    else:
        _warn_of_its_size(source, scheme, quiet=quiet or json, **hub)
    report = convert_with_progress(
        source,
        output,
        scheme,
        quiet=quiet or json,
        embedding=embedding,
        head=head,
        calibration=chain,
        plans=None if chosen is None else chosen.plans,
        importance=None if chosen is None else chosen.importance,
        force=force,
        threads=threads,
        **hub,
    )
    taken = receipts.measure(report, source, wanted=receipt, quiet=quiet or json, threads=threads, **hub)
    if json:
        terminal.print_json({**as_json(report), "receipt": receipts.as_json(taken)})
    elif quiet:
        print(report.path)
    else:
        print_summary(report)
        if taken is not None:
            terminal.stdout().print()
            receipts.print_receipt(taken)


def _warn_of_its_size(source: str, scheme: str, *, quiet: bool, **hub: Any) -> None:
    """Says, before any weight is fetched or read, if the result will not run here; another machine may."""
    from bitqwen.checkpoints.configs import read_config
    from bitqwen.cli.inspection import memory_needs, memory_text
    from bitqwen.convert.sizes import converted_bytes
    from bitqwen.engine.model import DEFAULT_CONTEXT
    from bitqwen.models.registry import config_from_hf

    try:
        config = config_from_hf(read_config(source, **hub), source=source)
        weights = converted_bytes(config, scheme)
    except BitqwenError:  # the conversion itself says what is wrong, and knows more
        return
    need = memory_needs(config, weights, min(DEFAULT_CONTEXT, config.max_context))
    if need["total"] > need["available"]:
        terminal.say(f"warning: running the result here. {memory_text(need, 'f16')}", quiet=quiet)


def convert_with_progress(
    source: str | Path, output: Path, scheme: str, *, quiet: bool = False, **settings: Any
) -> ConversionReport:
    """Converts with a progress bar on stderr: tensor, speed, time left; warnings stay there afterwards."""
    import sys

    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    import bitqwen.convert

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    shown = sys.stderr.isatty() and not quiet
    with Progress(*columns, console=terminal.stderr(), transient=True, disable=not shown) as bar:
        task = bar.add_task("opening", total=None)

        def advance(step: bitqwen.convert.Progress) -> None:
            bar.update(task, description=step.tensor, completed=step.done, total=step.total)
            if step.finished is not None and options.debug_enabled():
                bar.console.print(_log_line(step.finished), soft_wrap=True)

        report = bitqwen.convert.convert(source, output, scheme, progress=advance, **settings)
    for warning in report.warnings:
        terminal.say(f"warning: {warning}", quiet=quiet)
    return report


def _log_line(tensor: TensorReport) -> str:
    shape = " x ".join(map(str, tensor.shape))
    return (
        f"{tensor.name}: {shape}, {tensor.source_type} -> {tensor.tensor_type}, squared error "
        f"{tensor.relative_error:.3%}, {tensor.seconds:.3f} s"
    )


def as_json(report: ConversionReport) -> dict[str, Any]:
    """A conversion for scripts."""
    return {
        "path": report.path,
        "scheme": report.scheme,
        "bytes": report.nbytes,
        "bits_per_weight": report.bits_per_weight(),
        "matrix_bits_per_weight": report.bits_per_weight("matrix"),
        "relative_error": report.relative_error,
        "lost_outputs": report.lost_outputs,
        "types": report.type_counts(),
        "warnings": report.warnings,
        "seconds": report.seconds,
        "tensors": [
            {
                "name": tensor.name,
                "shape": tensor.shape,
                "source_type": tensor.source_type,
                "type": tensor.tensor_type,
                "bytes": tensor.nbytes,
                "relative_error": tensor.relative_error,
                "lost_outputs": tensor.lost_outputs,
                "seconds": tensor.seconds,
            }
            for tensor in report.tensors
        ],
    }


def print_summary(report: ConversionReport) -> None:
    """Prints what a conversion did, as a small table on stdout."""
    from rich.markup import escape
    from rich.table import Table

    from bitqwen.cli.inspection import inspect_path, memory_text

    types = ", ".join(f"{name} {count}" for name, count in report.type_counts().items())
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("file", escape(str(report.path)))
    table.add_row("scheme", report.scheme)
    table.add_row("size", f"{terminal.size(report.nbytes)} ({report.nbytes:,} bytes)")
    table.add_row(
        "bits per weight",
        f"{report.bits_per_weight():.3f} ({report.bits_per_weight('matrix'):.3f} in the layers' matrices)",
    )
    table.add_row("tensors", f"{len(report.tensors)} ({types})")
    table.add_row("squared error", f"{report.relative_error:.2%} of the matrices' energy")
    if report.lost_outputs is not None:
        table.add_row("lost outputs", f"{report.lost_outputs:.2%} of their energy, on the calibration text")
    table.add_row("time", f"{report.seconds:.1f} s")
    terminal.stdout().print(table)
    need = inspect_path(report.path).memory(None, "f16", None)
    assert need is not None  # it was converted, so its architecture is known
    terminal.stdout().print(memory_text(need, "f16"))


def _list_schemes(*, as_json: bool) -> None:
    from bitqwen import quant

    schemes = [quant.get(name) for name in quant.names()]
    if as_json:
        rows = [
            {
                "name": scheme.name,
                "bits_per_weight": scheme.bits_per_weight,
                "types": [plan.tensor_type.name for plan in scheme.body],
                "file_type": scheme.file_type,
                "needs_force": scheme.needs_force,
                "when": scheme.when,
            }
            for scheme in schemes
        ]
        terminal.print_json({"schemes": rows})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scheme")
    table.add_column("bits per weight", justify="right")
    table.add_column("type")
    table.add_column("file type", justify="right")
    table.add_column("when to use it")
    for scheme in schemes:
        table.add_row(
            scheme.name,
            f"{scheme.bits_per_weight:.4g}",
            scheme.body[0].tensor_type.name,
            str(scheme.file_type),
            scheme.when,
        )
    terminal.stdout().print(table)
