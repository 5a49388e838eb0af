"""The pictures in docs/images/, from saved reports of ``bitqwen bench -o json``.

python benchmarks/plots.py REPORT.json ... --output docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bitqwen.errors import UsageError
from bitqwen.measure.bench import plots, tables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.json")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), metavar="FOLDER")
    parser.add_argument("--format", choices=["svg", "png"], default="svg")
    options = parser.parse_args()
    documents = [tables.read(path) for path in options.reports]
    options.output.mkdir(parents=True, exist_ok=True)
    for name in plots.PANELS:
        path = options.output / f"{name}.{options.format}"
        try:
            plots.draw(documents, path, [name])
        except UsageError as error:
            print(f"{name}: {error.message}")
        else:
            print(path)


if __name__ == "__main__":
    main()
