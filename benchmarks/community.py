"""Rows of docs/community-benchmarks.md from reports of ``bitqwen bench -o json``.

python benchmarks/community.py REPORT.json ...
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitqwen.measure.bench import tables


def rows(document: dict[str, Any]) -> list[str]:
    """The report's rows as the page's table has them; speeds always with their spread."""
    about = document["machine"]
    out = []
    for row in document["rows"]:
        sigma = "?" if row["sigma"] is None else f"{row['sigma']:.2f}"
        share = row["bandwidth_share"] if row["kind"] == "tg" else row["int8_share"]
        engine = "" if row["engine"] == "bitqwen" else f", {Path(row['engine']).name}"
        cells = [
            f"{about['cpu']}, {row['isa'] or '-'}",
            f"{Path(row['model']).stem}, {row['threads']}{engine}",
            row["test"],
            f"{row['tokens_per_second']:.2f} ± {sigma}",
            "-" if share is None else f"{share:.0%}",
            "-" if row["joules_per_token"] is None else f"{row['joules_per_token']:.3f}",
            about["date"][:10],
        ]
        out.append("| " + " | ".join(cells) + " |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.json")
    for path in parser.parse_args().reports:
        print("\n".join(rows(tables.read(path))))


if __name__ == "__main__":
    main()
