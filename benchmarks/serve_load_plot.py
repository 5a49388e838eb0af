"""Draws what serve_load.py saved: tokens per second and waiting, by the number of clients and by arrivals.

pip install matplotlib
python benchmarks/serve_load_plot.py load.json load-w2.json --output serve_load.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

CLIENTS, ARRIVALS = " clients", " requests/s"
PANELS = [
    ("tokens_per_second", CLIENTS, "all clients together, tokens per second"),
    ("first_p95", CLIENTS, "time to the first token, 95th percentile, s"),
    ("gap_p95", CLIENTS, "time between tokens, 95th percentile, s"),
    ("first_p95", ARRIVALS, "time to the first token, 95th percentile, s"),
]
LABELS = {CLIENTS: "clients at once", ARRIVALS: "requests a second, at random times"}


def points_of(results: dict[str, Any], value: str, unit: str) -> list[tuple[float, float]]:
    rows = [(float(name.split()[0]), row) for name, row in results.items() if name.endswith(unit)]
    return sorted((load, row[value]) for load, row in rows if value in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in options.files]
    lines: dict[str, dict[str, Any]] = {}
    for document in documents:  # the parts of one server may come from several files
        for results in document["results"]:
            lines.setdefault(f"{results['server']} {results['label']}".strip(), {}).update(results)
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "bitqwen", "font.size": 9}
    figure, panels = plt.subplots(1, len(PANELS), figsize=(14, 3.6), layout="constrained")
    for panel, (value, unit, title) in zip(panels, PANELS, strict=True):
        ticks: set[float] = set()
        for name, results in lines.items():
            points = points_of(results, value, unit)
            if points:
                style = "o-" if name.startswith("bitqwen") else "s--"
                panel.plot(*zip(*points, strict=True), style, label=name)
                ticks |= {load for load, _ in points}
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel(LABELS[unit])
        panel.set_title(title, fontsize=9)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=8)
    machine = documents[0]["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}", fontsize=9)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
