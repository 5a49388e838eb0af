"""Receipts on the command line: measured at the end of a conversion, shown by it and by ``inspect``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitqwen.cli import terminal

if TYPE_CHECKING:
    from bitqwen.measure.receipt import Receipt


def measure(path: Path, source: str, *, quiet: bool, threads: int | None, **hub: Any) -> Receipt:
    """Measures a converted file against its source and writes the receipt into it.

    Args:
        path: the file.
        source: what it was converted from.
        quiet: say nothing.
        threads: for the engine.
        **hub: revision, token and offline, as for the conversion.

    Raises:
        ModelFileError, CheckpointError, ResourceError, UnsupportedModelError: a model cannot be used.
    """
    from bitqwen.convert import convert
    from bitqwen.measure import receipt
    from bitqwen.measure.runner import EngineOptions

    def advance(step: Any) -> None:
        terminal.say(f"measuring {step.text}: {step.done} of {step.total}", quiet=quiet)

    engine = EngineOptions(threads=threads)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        reference = Path(source).expanduser()
        if not (reference.is_file() and reference.suffix == ".gguf"):
            reference = Path(folder) / "reference.gguf"
            convert(source, reference, "f16", threads=threads, **hub)
        taken = receipt.take(path, reference, source=source, engine=engine, progress=advance)
    receipt.attach(path, taken)
    return taken


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
