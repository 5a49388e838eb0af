"""What ``tune`` and ``show`` print: each choice, its time, and what it left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitqwen.cli import terminal

if TYPE_CHECKING:
    from bitqwen.kernels.plans import Entry, Place, Timing
    from bitqwen.kernels.products import Product

_HEADINGS = ("product", "batch", "MB", "us", "GB/s", "GMAC/s", "of peak", "kernels", "best loser", "default")
_LEFT = {"product", "batch", "kernels", "best loser"}


def rate(entry: Entry) -> float:
    """What the winner did a second, in the unit of the entry's peak: bytes, or multiply-adds."""
    return _macs(entry) / entry.winner.seconds if entry.batch == "prefill" else _bandwidth(entry)


def as_json(place: Place, products: Sequence[Product] | None, entries: Sequence[Entry]) -> dict[str, Any]:
    """One object with all that the table says."""
    names = _names(products)
    return {
        "cpu": place.cpu,
        "isa": place.isa,
        "threads": place.threads,
        "products": [
            {
                "format": entry.key.format,
                "rows": entry.key.rows,
                "cols": entry.key.cols,
                "matrices": names.get(entry.key, []),
                "batch": entry.batch,
                "columns": entry.columns,
                "timed_rows": entry.timed_rows,
                "bytes": entry.bytes,
                "bandwidth": _bandwidth(entry),
                "macs_per_second": _macs(entry) / entry.winner.seconds,
                "peak": entry.peak,
                "of_peak": rate(entry) / entry.peak if entry.peak else None,
                "winner": _timing(entry.winner),
                "default": _timing(entry.default),
                "loser": entry.loser and _timing(entry.loser),
            }
            for entry in entries
        ],
    }


def print_table(place: Place, products: Sequence[Product] | None, entries: Sequence[Entry]) -> None:
    """The table, on stdout."""
    from rich.table import Table

    names = _names(products)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in _LEFT else "right", overflow="fold")
    before = None
    for entry in entries:
        matrices = "+".join(names.get(entry.key, []))
        shape = f"{entry.key.format} {entry.key.rows} x {entry.key.cols}"
        part = f", {entry.timed_rows} rows timed" if entry.timed_rows != entry.key.rows else ""
        table.add_row(
            "" if entry.key == before else f"{shape} {matrices}".strip(),
            f"{entry.batch}{part}",
            f"{entry.bytes / 1e6:.2f}",
            f"{entry.winner.seconds * 1e6:.0f}",
            f"{_bandwidth(entry) / 1e9:.1f}",
            f"{_macs(entry) / entry.winner.seconds / 1e9:.0f}",
            f"{rate(entry) / entry.peak:.0%}" if entry.peak else "",
            str(entry.winner.choice),
            f"{_behind(entry, entry.loser)} {entry.loser.choice}" if entry.loser else "none",
            _behind(entry, entry.default),
        )
        before = entry.key
    out = terminal.stdout()
    out.print(f"{place.cpu}; {place.isa}, {place.threads} threads", soft_wrap=True, markup=False)
    out.print(table)
    peaks = {entry.batch == "prefill": entry.peak for entry in entries}
    if peaks.get(False):
        out.print(
            f"Peak of batches 1 and 2-4: {peaks[False] / 1e9:.1f} GB/s read, in the same run.", soft_wrap=True
        )
    if peaks.get(True):
        out.print(f"Peak of prefill: {peaks[True] / 1e9:.0f} G int8 multiply-adds a second.", soft_wrap=True)


def _names(products: Sequence[Product] | None) -> dict[Any, list[str]]:
    return {product.key: list(product.names) for product in products or ()}


def _bandwidth(entry: Entry) -> float:
    return entry.bytes / entry.winner.seconds


def _macs(entry: Entry) -> float:
    return float(entry.timed_rows) * entry.key.cols * entry.columns


def _behind(entry: Entry, other: Timing) -> str:
    """How much more time another took: ``+3 %``, or ``=`` for the winner itself."""
    if other.choice == entry.winner.choice:
        return "="
    return f"{other.seconds / entry.winner.seconds - 1:+.0%}"


def _timing(timing: Timing) -> dict[str, Any]:
    choice = timing.choice
    return {
        "kernels": choice.kernels,
        "rows": choice.rows,
        "tile": choice.tile,
        "library": choice.library or None,
        "seconds": timing.seconds,
    }
