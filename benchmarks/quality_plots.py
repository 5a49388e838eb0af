"""The pictures of docs/quality.md, from what `quality.py` saved.

    python benchmarks/quality_plots.py quality.json [--output docs/images] [--format svg|png]

``quality_by_bytes``: KL divergence over the file's size, llama.cpp's types and ours, prose and code.
``sensitivity``: what the predictions lose if a matrix loses all its outputs, by layer and kind of matrix.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bitqwen.measure.bench import plots

KINDS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def by_bytes(axes: Axes, results: dict[str, Any], text: str) -> None:
    """Each side's KL divergence over bytes, on one text."""
    sides = dict.fromkeys(side for both in results.values() for side in both)
    for style, side in zip(plots.STYLES, sides, strict=False):
        named = {name: both[side] for name, both in results.items() if side in both}
        rows = sorted(named.items(), key=lambda item: int(item[1]["bytes"]))
        values = [row["texts"][text] for _, row in rows]
        axes.errorbar(
            [row["bytes"] / 1e6 for _, row in rows],
            [value["kl"] for value in values],
            yerr=[
                [value["kl"] - max(value["low"], value["kl"] / 100) for value in values],
                [value["high"] - value["kl"] for value in values],
            ],
            capsize=3,
            label=side,
            **style,
        )
        if side == "llama.cpp":
            for name, row in rows:
                plots.label(axes, row["bytes"] / 1e6, row["texts"][text]["high"], name)
    axes.set(
        title=text, xlabel="file, MB", ylabel="KL divergence from the source, nats a token", yscale="log"
    )
    axes.margins(0.1, 0.12)
    axes.legend(title="95 % interval", loc="lower left")


def sensitivity(axes: Axes, nats: dict[str, float]) -> None:
    """Nats by layer, a line for each kind of matrix."""
    for style, (kind, part) in zip(plots.STYLES, KINDS.items(), strict=True):
        points = {
            int(name.split(".")[2]): value for name, value in nats.items() if name.endswith(f".{part}.weight")
        }
        layers = sorted(points)
        axes.plot(layers, [points[layer] for layer in layers], markersize=4, label=kind, **style)
    axes.set(
        title="What depends on each matrix",
        xlabel="layer",
        ylabel="nats a token, if all its outputs were lost\n(from the slope at small losses)",
        yscale="log",
    )
    axes.legend(ncols=2)


def main() -> None:
    """Draws both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/images"), metavar="FOLDER")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    options = parser.parse_args()
    document = json.loads(options.results.read_text(encoding="utf-8"))
    results, machine = document["results"], document["machine"]
    about = f"Qwen2.5-Coder-1.5B-Instruct, neutral source; {machine['cpu']}, {machine['date'][:10]}"
    texts = list(next(iter(next(iter(results["files"].values())).values()))["texts"])
    pictures: dict[str, list[Callable[[Axes], None]]] = {
        "quality_by_bytes": [partial(by_bytes, results=results["files"], text=text) for text in texts],
        "sensitivity": [partial(sensitivity, nats=results["sensitivity"])],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for name, panels in pictures.items():
        path = options.output / f"{name}.{options.format}"
        plots.save(path, panels, about)
        print(path)


if __name__ == "__main__":
    main()
