"""Look-up tables against multiply-add for ternary weights, over the columns of a matrix and the batch.

Both read the same weights from memory: generated kernels as triples in tables (1.75 bits a weight, scales
included), built-in ones as codes of two bits (2.06). They take turns, the best of the rounds counts, and the
making of the tables is part of a product. Saves the results and draws them (pip install matplotlib) as
docs/kernels.md shows them:

    python benchmarks/kernel_sweep.py --save benchmarks/results/kernel_sweep.json \
        --svg docs/images/kernel_sweep.svg

`--draw FILE.json` measures nothing and does the same with saved results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import machine

from bitqwen import _native
from bitqwen.gguf import TensorType
from bitqwen.kernels import MatrixShape, choose, compiler
from bitqwen.kernels.candidates import target_here
from bitqwen.kernels.generator import generate_for

COLUMNS = (768, 1536, 3584, 8960, 18944)
BATCHES = (1, 2, 4, 8)
WEIGHTS = 24 << 20  # of a product: 6 MB
ROTATED = 128 << 20


def library(shapes: list[MatrixShape]) -> str:
    """Generated kernels for shapes, compiled and proved."""
    target = target_here()
    if target is None:
        raise SystemExit("There are no generated kernels for this CPU.")
    kernels = [(shape, choose(shape, target)) for shape in shapes]
    made = generate_for(kernels, target, model="a sweep", command="benchmarks/kernel_sweep.py")
    path = str(compiler.shared_library(made.header, target.flags))
    _native.load_generated(path)
    return path


def sweep(threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of each side for each width and batch, and the bandwidth that was measured beside them."""
    shapes = [MatrixShape(WEIGHTS // cols // 256 * 256, cols, ()) for cols in COLUMNS]
    generated = library(shapes)
    peaks = _native.Peaks(threads, 256 << 20)
    bandwidth, points = 0.0, []
    for shape in shapes:
        timer = _native.ProductTimer(int(TensorType.TQ2_0), shape.rows, shape.cols, threads, ROTATED)
        for batch in BATCHES:
            isa, rows, tile, _ = timer.default_plan(batch)
            plans = {"multiply-add": (isa, rows, tile, ""), "look-up": (isa, max(64, rows), tile, generated)}
            best = dict.fromkeys(plans, float("inf"))
            for _ in range(rounds):
                bandwidth = max(bandwidth, peaks.read_bandwidth())
                for side, plan in plans.items():
                    best[side] = min(best[side], timer.seconds(batch, plan))
            size = {"multiply-add": timer.bytes, "look-up": timer.generated_bytes}
            points.append(
                {"rows": shape.rows, "cols": shape.cols, "batch": batch, "seconds": best, "bytes": size}
            )
            print(line(points[-1]), flush=True)
    return {"threads": threads, "isa": _native.isa_name(), "bandwidth": bandwidth, "points": points}


def line(point: Mapping[str, Any]) -> str:
    """One width and batch in words."""
    sides = ("look-up", "multiply-add")
    seconds, size = point["seconds"], point["bytes"]
    each = (f"{s} {seconds[s] * 1e6:7.0f} us ({size[s] / seconds[s] / 1e9:4.1f} GB/s)" for s in sides)
    ratio = seconds["multiply-add"] / seconds["look-up"]
    return f"K {point['cols']:6} batch {point['batch']}: {', '.join(each)}: {ratio:.2f} times as fast"


def table(result: Mapping[str, Any]) -> list[str]:
    """Markdown: how many times as fast look-ups are, and what both read in a second for one token."""
    lines = ["| K | 1 token | 2 tokens | 4 tokens | 8 tokens | look-up, 1 token | multiply-add, 1 token |"]
    lines.append("|---|---|---|---|---|---|---|")
    for cols in COLUMNS:
        points = {point["batch"]: point for point in result["points"] if point["cols"] == cols}
        cells = [f"{cols:,}"]
        for batch in BATCHES:
            seconds = points[batch]["seconds"]
            cells.append(f"{seconds['multiply-add'] / seconds['look-up']:.2f}")
        for side in ("look-up", "multiply-add"):
            rate = points[1]["bytes"][side] / points[1]["seconds"][side]
            cells.append(f"{rate / 1e9:.1f} GB/s, {rate / result['bandwidth']:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Two panels: how many times as fast look-ups are, and what share of the bandwidth each side uses."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    # Text stays text, and the same results give the same file.
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bitqwen", "font.size": 10})
    figure, (speed, share) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    styles = dict(zip(BATCHES, (("o", "-"), ("s", "--"), ("^", "-."), ("D", ":")), strict=True))
    for i, batch in enumerate(BATCHES):
        points = [point for point in result["points"] if point["batch"] == batch]
        x = [point["cols"] for point in points]
        marker, line = styles[batch]
        grey = str(0.55 * i / (len(BATCHES) - 1))
        ratios = [p["seconds"]["multiply-add"] / p["seconds"]["look-up"] for p in points]
        name = "1 token" if batch == 1 else f"{batch} tokens"
        speed.plot(x, ratios, marker=marker, linestyle=line, color=grey, label=name)
    speed.axhline(1.0, color="0.3", linewidth=0.8)
    speed.set_ylabel("look-up, times as fast as multiply-add")
    alone = [point for point in result["points"] if point["batch"] == 1]
    for side, marker, line, grey in (("look-up", "o", "-", "0"), ("multiply-add", "s", "--", "0.45")):
        rates = [100 * p["bytes"][side] / p["seconds"][side] / result["bandwidth"] for p in alone]
        share.plot([p["cols"] for p in alone], rates, marker=marker, linestyle=line, color=grey, label=side)
    share.set_ylabel("% of the read bandwidth, 1 token")
    share.set_ylim(0, 105)
    for axes in (speed, share):
        axes.set_xscale("log")
        axes.set_xticks(COLUMNS, [str(cols) for cols in COLUMNS])
        axes.minorticks_off()
        axes.set_xlabel("columns of the matrix (K)")
        axes.grid(color="0.9")
        axes.legend(frameon=False)
    speed.set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=_native.available_cores())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--svg", type=Path, metavar="FILE.svg", help="the plot to write")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="results as JSON")
    parser.add_argument("--draw", type=Path, metavar="FILE.json", help="results saved before")
    given = parser.parse_args()
    if given.draw:
        saved = json.loads(given.draw.read_text(encoding="utf-8"))
        facts, result = saved["machine"], saved["results"]
    else:
        facts, result = machine.describe(), sweep(given.threads, given.rounds)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(
        f"read bandwidth {result['bandwidth'] / 1e9:.1f} GB/s, {result['threads']} threads, {result['isa']}"
    )
    print("\n".join(table(result)))
    if given.save and not given.draw:
        machine.save(given.save, "kernel_sweep", result)
    if given.svg:
        plot(result, given.svg)


if __name__ == "__main__":
    main()
