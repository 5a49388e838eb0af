"""Receipts on the command line: measured at the end of a conversion, shown by it and by ``inspect``."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitqwen.cli import measurements, terminal
from bitqwen.errors import BitqwenError, ResourceError

if TYPE_CHECKING:
    from bitqwen.convert import ConversionReport
    from bitqwen.measure.receipt import Receipt

_EXACT = frozenset({"F32", "F16", "BF16"})
# Of two models with 512 positions each: KV caches, scratch, and 64 rows of logits with their copies.
_WORKING_BYTES = 500 << 20
_SPARE_DISK = 64 << 20


def measure(
    report: ConversionReport,
    source: str,
    *,
    wanted: bool | None,
    quiet: bool,
    threads: int | None,
    **hub: Any,
) -> Receipt | None:
    """Measures a converted file against its source and writes the receipt into it.

    Args:
        report: of the conversion.
        source: what it was converted from.
        wanted: true to insist, false for none; ``None`` measures where memory and disk allow it, says so
            where they do not, and leaves out a file whose tensors were not quantised.
        quiet: say nothing.
        threads: for the engine.
        **hub: revision, token and offline, as for the conversion.

    Raises:
        ModelFileError, CheckpointError, ResourceError, UnsupportedModelError: ``wanted``, and a model cannot
            be used.
    """
    if wanted is False or (wanted is None and _is_exact(report)):
        return None
    try:
        if wanted is None:
            _check_room(report, source)
        taken = _measure(report.path, source, quiet=quiet, threads=threads, **hub)
    except BitqwenError as error:
        if wanted:
            raise
        terminal.say(f"No receipt was taken: {error}", quiet=quiet)
        return None
    # With the receipt in it, the file is a little larger.
    report.nbytes = report.path.stat().st_size
    return dataclasses.replace(taken, nbytes=report.nbytes)


def _measure(path: Path, source: str, *, quiet: bool, threads: int | None, **hub: Any) -> Receipt:
    from bitqwen.convert import convert
    from bitqwen.measure import receipt
    from bitqwen.measure.runner import EngineOptions

    terminal.say("Measuring the file against its source; --no-receipt leaves that out.", quiet=quiet)
    engine = EngineOptions(threads=threads)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        reference = Path(source).expanduser()
        if not _is_gguf(reference):
            reference = Path(folder) / "reference.gguf"
            convert(source, reference, "f16", threads=threads, **hub)
        with measurements.progress(shown=not quiet) as advance:
            taken = receipt.take(
                path,
                reference,
                source=source,
                engine=engine,
                progress=lambda step: advance(f"measuring {step.text}", step.done, step.total),
            )
    receipt.attach(path, taken)
    return taken


def _is_gguf(source: Path) -> bool:
    return source.is_file() and source.suffix == ".gguf"


def _is_exact(report: ConversionReport) -> bool:
    return all(tensor.tensor_type in _EXACT for tensor in report.tensors)


def _check_room(report: ConversionReport, source: str) -> None:
    """Refuses what would swap or fill the disk.

    Raises:
        ResourceError: the source, the file and what runs them take more than there is.
    """
    from bitqwen.engine import memory

    path = Path(source).expanduser()
    ready = _is_gguf(path)
    reference = path.stat().st_size if ready else 2 * sum(tensor.weights for tensor in report.tensors)
    need = reference + report.nbytes + _WORKING_BYTES
    available = memory.available()
    if need > available:
        raise ResourceError(
            f"with the source it takes {terminal.size(need)} of memory; {terminal.size(available)} are free.",
            hint="A larger machine can save a reference for bitqwen eval: --save-reference, --reference.",
        )
    # The source in f16 while measuring, then a second copy of the file while the receipt is noted in it.
    room = max(0 if ready else reference, report.nbytes) + _SPARE_DISK
    free = shutil.disk_usage(report.path.parent).free
    if room > free:
        raise ResourceError(f"it takes {terminal.size(room)} of disk, and {terminal.size(free)} are free.")


def as_json(receipt: Receipt | None) -> dict[str, Any] | None:
    """A receipt for scripts."""
    if receipt is None:
        return None
    return {
        "verdict": receipt.verdict,
        "meaning": receipt.meaning,
        "reference": receipt.reference,
        "bytes": receipt.nbytes,
        "bits_per_weight": receipt.bits_per_weight,
        "seconds": receipt.seconds,
        "domains": {name: vars(domain) for name, domain in receipt.domains.items()},
    }


def print_receipt(receipt: Receipt) -> None:
    """Prints a receipt as a table, and its verdict."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("receipt")
    for heading in ("KL divergence", "95 % interval", "same top token", "perplexity ratio", "tokens"):
        table.add_column(heading, justify="right")
    for name, domain in receipt.domains.items():
        table.add_row(
            escape(name),
            f"{domain.kl:.4f}",
            f"{max(domain.kl_low, 0):.4f} to {domain.kl_high:.4f}",
            f"{domain.same_top:.1%}",
            f"{domain.perplexity_ratio:.4f}",
            str(domain.tokens),
        )
    out = terminal.stdout()
    out.print(table)
    out.print(f"[bold]{receipt.verdict}[/]: {receipt.meaning}", soft_wrap=True)
