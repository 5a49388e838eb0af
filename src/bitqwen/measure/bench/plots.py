"""Pictures of saved reports: speed by bits, quality by bytes, the roofline, and speed by depth.

Series differ in marker, dash and lightness, so that they can be told apart without colour.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitqwen.errors import BitqwenError, UsageError
from bitqwen.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = (".svg", ".png")
# From dark to light, which is how they differ in greyscale.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#9c3d00", "marker": "s", "linestyle": "--"},
    {"color": "#0072b2", "marker": "^", "linestyle": "-."},
    {"color": "#8a8a8a", "marker": "D", "linestyle": ":"},
    {"color": "#d28ab0", "marker": "v", "linestyle": (0, (5, 1))},
    {"color": "#b5a400", "marker": "P", "linestyle": (0, (1, 1))},
    {"color": "#4b3b8f", "marker": "x", "linestyle": (0, (3, 1, 1, 1))},
)
# Any: from 3.11 on matplotlib names its settings one by one in the type.
_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bitqwen",  # the same report gives the same bytes
}
_BATCH = 512  # tokens that share one reading of the weights

Rows = list[dict[str, Any]]


def check(path: Path) -> None:
    """Refuses a name that no picture can have, and says so if matplotlib is missing, before measuring.

    Raises:
        UsageError: another ending.
        BitqwenError: matplotlib is not installed.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"--plot {path}: no such kind of picture.", hint=f"The name ends in {' or '.join(ENDINGS)}."
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BitqwenError(
            "matplotlib, which draws pictures, is not installed.", hint="pip install 'bitqwen[plot]'"
        ) from error


def draw(documents: Sequence[dict[str, Any]], path: Path, names: Iterable[str] | None = None) -> list[str]:
    """Draws what the reports have data for, side by side in one file.

    Args:
        documents: reports as :meth:`bitqwen.measure.bench.Report.as_json` gives them.
        path: the picture, .svg or .png.
        names: which pictures, of PANELS; by default all that have data.

    Returns:
        the names of what was drawn.

    Raises:
        UsageError: another ending, or nothing to draw.
        BitqwenError: matplotlib is not installed, or the file cannot be written.
    """
    check(path)
    chosen = [name for name in names or PANELS if _PANELS[name][0](documents)]
    if not chosen:
        raise UsageError(
            "There is nothing to draw.",
            hint="Pictures are of decode rows (-n), and of receipts (convert --receipt).",
        )
    save(path, [_panel(name, documents) for name in chosen], _machines(documents))
    return chosen


def _panel(name: str, documents: Sequence[dict[str, Any]]) -> Callable[[Axes], None]:
    return lambda axes: _PANELS[name][1](axes, documents)


def save(path: Path, panels: Sequence[Callable[[Axes], None]], about: str) -> None:
    """Draws panels side by side in one file; the same data gives the same bytes.

    Args:
        path: the picture, .svg or .png.
        panels: each draws into its axes.
        about: what stands above them, small.

    Raises:
        UsageError, BitqwenError: as :func:`check`; the file cannot be written.
    """
    check(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    with rc_context(_RC):
        figure = Figure(figsize=(6.4 * columns, 4.4 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False).flat
        for axes, panel in itertools.zip_longest(grid, panels):
            if panel is None:
                axes.remove()
            else:
                panel(axes)
        figure.suptitle(about, fontsize=8)
        with atomic_file(path) as file:
            figure.savefig(
                file,
                format=path.suffix[1:].lower(),
                dpi=150,
                metadata={"Date": None} if path.suffix.lower() == ".svg" else {"Software": None},
            )


def _machines(documents: Sequence[dict[str, Any]]) -> str:
    about = [document["machine"] for document in documents]
    return "; ".join(
        dict.fromkeys(f"{each['cpu']}, {each['cores']} CPUs, {each['date'][:10]}" for each in about)
    )


def _rows(documents: Sequence[dict[str, Any]], kind: str) -> Rows:
    return [row for document in documents for row in document["rows"] if row["kind"] == kind]


def _name(row: dict[str, Any]) -> str:
    return Path(str(row["model"])).stem


def _engine(row: dict[str, Any]) -> str:
    return Path(str(row["engine"])).name


def label(axes: Axes, x: float, y: float, text: str, above: bool = True) -> None:
    """Writes a word above or below a point."""
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 8 if above else -8),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        fontsize=8,
    )


def shortest(names: Iterable[str]) -> dict[str, str]:
    """Names without what all of them begin with: ``coder-w2``, ``coder-w4`` -> ``w2``, ``w4``."""
    found = list(dict.fromkeys(names))
    parts = [name.split("-") for name in found]
    same = 0
    while len(found) > 1 and all(len(p) > same + 1 for p in parts) and len({p[same] for p in parts}) == 1:
        same += 1
    return {name: "-".join(part[same:]) for name, part in zip(found, parts, strict=True)}


def _speed_rows(documents: Sequence[dict[str, Any]]) -> Rows:
    rows = [row for row in _rows(documents, "tg") if row.get("bits_per_weight")]
    least = min((row["depth"] for row in rows), default=0)
    rows = [row for row in rows if row["depth"] == least]
    return rows if len({row["bits_per_weight"] for row in rows}) > 1 else []


def _speed(axes: Axes, documents: Sequence[dict[str, Any]]) -> None:
    from matplotlib.ticker import NullLocator

    rows = _speed_rows(documents)
    short = shortest(_name(row) for row in rows)
    for style, (engine, group) in zip(itertools.cycle(STYLES), _groups(rows, _engine), strict=False):
        line = sorted(group, key=lambda row: float(row["bits_per_weight"]))
        axes.errorbar(
            [row["bits_per_weight"] for row in line],
            [row["tokens_per_second"] for row in line],
            yerr=[row["sigma"] or 0 for row in line],
            capsize=3,
            label=engine,
            **style,
        )
    told = set()
    for row in sorted(rows, key=lambda row: -float(row["tokens_per_second"])):
        if _name(row) not in told:
            told.add(_name(row))
            top = float(row["tokens_per_second"]) + float(row["sigma"] or 0)
            label(axes, row["bits_per_weight"], top, short[_name(row)])
    axes.set(
        title="Decoding speed by size",
        xlabel="bits per weight, all tensors",
        ylabel="tokens/s, ± one deviation",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks([2, 3, 4, 6, 8, 12, 16], labels=["2", "3", "4", "6", "8", "12", "16"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.legend()


def _quality_rows(documents: Sequence[dict[str, Any]]) -> Rows:
    rows = [row for document in documents for row in document["rows"] if row.get("quality")]
    unique = {(row["model"], row["model_bytes"]): row for row in rows}
    return list(unique.values()) if len(unique) > 1 else []


def _quality(axes: Axes, documents: Sequence[dict[str, Any]]) -> None:
    rows = sorted(_quality_rows(documents), key=lambda row: int(row["model_bytes"]))
    short = shortest(_name(row) for row in rows)
    domains = list(dict.fromkeys(name for row in rows for name in row["quality"]))
    for style, domain in zip(itertools.cycle(STYLES), domains, strict=False):
        having = [row for row in rows if domain in row["quality"]]
        values = [row["quality"][domain] for row in having]
        axes.errorbar(
            [row["model_bytes"] / 1e9 for row in having],
            [value["kl"] for value in values],
            yerr=[
                [value["kl"] - max(value["kl_low"], value["kl"] / 100) for value in values],
                [value["kl_high"] - value["kl"] for value in values],
            ],
            capsize=3,
            label=domain,
            **(style | {"linestyle": "none"}),
        )
    for row in rows:
        top = max(value["kl_high"] for value in row["quality"].values())
        label(axes, row["model_bytes"] / 1e9, top, short[_name(row)])
    axes.set(
        title="What is lost, by size (receipts)",
        xlabel="file, GB",
        ylabel="KL divergence from the source, nats a token",
        yscale="log",
    )
    axes.margins(0.1, 0.15)
    axes.legend(title="text, 95 % interval")


def _roofline_rows(documents: Sequence[dict[str, Any]]) -> Rows:
    found = [intensity(row) is not None for document in documents for row in document["rows"]]
    peaks = [value for document in documents for value in document["int8_gmac_per_second"].values()]
    return [{}] if any(found) and any(max(value, default=0) for value in peaks) else []


def intensity(row: dict[str, Any]) -> tuple[float, float] | None:
    """Multiply-adds per byte that must be read, and multiply-adds a second; ours only."""
    macs, weights = row.get("macs_per_token"), row.get("weight_bytes")
    if not macs or not weights:
        return None
    speed = macs * row["tokens_per_second"]
    if row["kind"] == "tg":
        return macs / row["bytes_per_token"], speed
    return macs * row["tokens"] / (weights * math.ceil(row["tokens"] / _BATCH)), speed


def _roofline(axes: Axes, documents: Sequence[dict[str, Any]]) -> None:
    document = documents[0]
    threads = max(document["int8_gmac_per_second"], key=int)
    peak = max(document["int8_gmac_per_second"][threads]) * 1e9
    read = max(document["read_gb_per_second"][threads]) * 1e9
    rows = [
        row
        for each in documents
        for row in each["rows"]
        if str(row["threads"]) == threads and not row["depth"]
    ]
    points = [(row, found) for row in rows if (found := intensity(row)) is not None]
    short = shortest(_name(row) for row, _ in points)
    low = min(point[0] for _, point in points) / 3
    high = max(peak / read, *(point[0] for _, point in points)) * 3
    axes.plot([low, peak / read, high], [low * read, peak, peak], color="black", linewidth=2)
    label(axes, math.sqrt(peak / read * high), peak, f"int8 peak {peak / 1e9:.0f} GMAC/s")
    axes.annotate(
        f"read bandwidth {read / 1e9:.1f} GB/s",
        (low * 1.2, low * 1.2 * read),
        xytext=(4, -4),
        textcoords="offset points",
        va="top",
        fontsize=8,
    )
    for style, (name, group) in zip(
        itertools.cycle(STYLES), _groups(points, lambda p: _name(p[0])), strict=False
    ):
        for row, (x, y) in group:
            axes.plot(
                x,
                y,
                markersize=8,
                **(style | {"linestyle": "none", "mfc": "none" if row["kind"] == "pp" else style["color"]}),
            )
        axes.plot([], [], label=short[name], **(style | {"linestyle": "none"}))
    axes.set(
        title="Roofline: decode filled, prefill hollow",
        xlabel="multiply-adds per byte of weights and KV cache",
        ylabel="multiply-adds per second",
        xscale="log",
        yscale="log",
    )
    axes.set_ylim(top=peak * 2)  # room for the roof's name
    axes.legend(loc="lower right")


def _depth_rows(documents: Sequence[dict[str, Any]]) -> Rows:
    rows = _rows(documents, "tg")
    return rows if len({row["depth"] for row in rows}) > 1 else []


def _depth(axes: Axes, documents: Sequence[dict[str, Any]]) -> None:
    rows = _depth_rows(documents)
    short = shortest(_name(row) for row in rows)
    several = len({row["kv"] for row in rows}) > 1

    def series(row: dict[str, Any]) -> str:
        return " ".join([short[_name(row)], _engine(row), *([row["kv"]] if several else [])])

    for style, (label, group) in zip(itertools.cycle(STYLES), _groups(rows, series), strict=False):
        line = sorted(group, key=lambda row: int(row["depth"]))
        if len(line) > 1:
            axes.errorbar(
                [row["depth"] for row in line],
                [row["tokens_per_second"] for row in line],
                yerr=[row["sigma"] or 0 for row in line],
                capsize=3,
                label=label,
                **style,
            )
    axes.set(
        title="Decoding speed by context", xlabel="tokens in the context", ylabel="tokens/s, ± one deviation"
    )
    axes.set_ylim(bottom=0)
    axes.legend()


def _groups(rows: Iterable[Any], key: Callable[[Any], str]) -> list[tuple[str, list[Any]]]:
    """Rows by key, in the order in which keys first appear."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.items())


_PANELS: dict[
    str,
    tuple[Callable[[Sequence[dict[str, Any]]], Rows], Callable[[Any, Sequence[dict[str, Any]]], None]],
] = {
    "speed": (_speed_rows, _speed),
    "quality": (_quality_rows, _quality),
    "roofline": (_roofline_rows, _roofline),
    "depth": (_depth_rows, _depth),
}
PANELS = tuple(_PANELS)
