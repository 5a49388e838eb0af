"""The plan's promise, speed and energy against half precision: a table from a report of ``bitqwen bench``.

bitqwen bench w2.gguf w4.gguf -p 512 -n 128 -r 5 --against f16.gguf \\
    --against llama-cpp-python=f16.gguf -o json > REPORT.json
python benchmarks/over_f16.py REPORT.json

Sides take turns, so a ratio is the median over the rounds of ours over theirs in the same round, with the
least and the greatest. What a file loses stands in its receipt, measured when it was converted.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from bitqwen.measure.bench import tables

Row = dict[str, Any]
_HALF = 15.5  # bits per weight; norms of half-precision files have 32


def ratio(ours: Row, theirs: Row) -> str:
    """Ours over theirs, round by round."""
    rounds = [a / b for a, b in zip(ours["samples"], theirs["samples"], strict=True)]
    return f"**{statistics.median(rounds):.2f}** ({min(rounds):.2f} to {max(rounds):.2f})"


def energy(ours: Row, theirs: Row) -> str:
    """Joules a token, ours over theirs; or that they could not be read."""
    if ours["joules_per_token"] is None or theirs["joules_per_token"] is None:
        return "not readable"
    return f"{ours['joules_per_token'] / theirs['joules_per_token']:.2f}"


def quality(row: Row) -> str:
    """KL divergence by text, as the receipt has it."""
    found = row["quality"]
    return "-" if not found else ", ".join(f"{name} {text['kl']:.3g}" for name, text in found.items())


def _name(row: Row) -> str:
    engine = "" if row["engine"] == "bitqwen" else f", {Path(row['engine']).name} {row['version'] or ''}"
    return Path(row["model"]).stem + engine.rstrip()


def table(document: dict[str, Any]) -> list[str]:
    """Markdown: a line for each test and side, ours with its ratios to each half-precision peer.

    Raises:
        SystemExit: nothing to compare with.
    """
    rows: list[Row] = document["rows"]
    halves = [row for row in rows if row["peer"] and (row["bits_per_weight"] or 0) > _HALF]
    if not halves:
        raise SystemExit("This report has no peer in half precision: bitqwen bench ... --against f16.gguf")
    names = list(dict.fromkeys(_name(row) for row in halves))
    heads = ["test", "file", "GB", "tokens/s", *(f"over {name}" for name in names)]
    heads += ["over a peer on the same file", "joules, of theirs", "KL divergence"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    # A peer's own row has no ratios: they would be the same ones, upside down.
    for row in sorted(rows, key=lambda row: str(row["test"])):
        mine = [] if row["peer"] else [peer for peer in halves if _comparable(row, peer)]
        against = {_name(peer): peer for peer in mine}
        same = [p for p in rows if p["peer"] and p not in halves and p["model"] == row["model"]]
        same = [] if row["peer"] else [peer for peer in same if _comparable(row, peer)]
        cells = [
            row["test"],
            _name(row),
            f"{row['model_bytes'] / 1e9:.2f}",
            f"{row['tokens_per_second']:.1f} ± {row['sigma']:.1f}",
            *(ratio(row, against[name]) if name in against else "" for name in names),
            ", ".join(ratio(row, peer) for peer in same),
            ", ".join(dict.fromkeys(energy(row, peer) for peer in mine)),
            "" if row["peer"] else quality(row),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    reasons = {row["energy_reason"] for row in rows if row["energy_reason"]}
    return [tables.machine_line(document["machine"]), "", *lines, "", *sorted(reasons)]


def _comparable(one: Row, other: Row) -> bool:
    return (one["test"], one["threads"]) == (other["test"], other["threads"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, metavar="REPORT.json")
    print("\n".join(table(tables.read(parser.parse_args().report))))


if __name__ == "__main__":
    main()
