"""Records of many runs, merged, and the table that says where a wanted ratio is met."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .plan import CONTESTS, wanted_decode

Record = dict[str, Any]

_DEPTH_SHARE = 0.75  # of the speed without context, wanted at a depth
_ROOF_SHARE = 0.85  # of bandwidth over bytes a token, wanted of the ternary file
_INT8_SHARE = 0.65  # of the int8 peak, wanted of prefill
_TITLES = {"tg": "Decode", "pp": "Prefill", "depth": "Decode at a depth, beside decode without context"}


def key(record: Record) -> tuple[str, ...]:
    """What a later run of the same pair takes the place of."""
    return tuple(str(record[part]) for part in ("contest", "test", "threads", "peer", "type"))


def merge(old: Iterable[Record], new: Iterable[Record]) -> list[Record]:
    """Records of both, the new ones in the place of old ones of the same pair."""
    return list({key(record): record for record in (*old, *new)}.values())


def load(path: Path) -> list[Record]:
    """Records of a file that :func:`save` wrote; none if it is not there."""
    if not path.exists():
        return []
    records: list[Record] = json.loads(path.read_text(encoding="utf-8"))["records"]
    return records


def save(path: Path, records: Sequence[Record]) -> None:
    """Writes records as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    document = {"benchmark": "vs_peers", "records": records}
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def ratios(record: Record) -> list[float]:
    """Ours over theirs, round by round: both sides of a round had the same neighbours."""
    return [a / b for a, b in zip(record["ours"]["samples"], record["theirs"]["samples"], strict=True)]


def ratio(record: Record) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(ratios(record))


def share(record: Record, side: str) -> float | None:
    """The part of the run's read bandwidth that a side's decoding reaches, at its median."""
    size = record[side]["bytes"]
    if record["kind"] == "pp" or not size:
        return None
    return float(size * statistics.median(record[side]["samples"]) / record["bandwidth"])


def wanted(record: Record) -> float | None:
    """The ratio that this record is meant to reach, if one was set for its peer."""
    if not record["counts"]:
        return None
    if record["kind"] == "depth":
        return _DEPTH_SHARE
    contest = CONTESTS[record["contest"]]
    if record["kind"] == "pp":
        return contest.prefill
    if contest.decode is None:
        return None
    sizes = record["theirs"]["bytes"], record["ours"]["bytes"]
    return wanted_decode(contest.decode, share(record, "theirs"), sizes[0] / sizes[1] if all(sizes) else None)


def markdown(records: Sequence[Record]) -> str:
    """A section for each kind of test and number of threads, and a line for each machine and day."""
    lines: list[str] = []
    for kind, threads in dict.fromkeys((record["kind"], record["threads"]) for record in records):
        chosen = [r for r in records if (r["kind"], r["threads"]) == (kind, threads)]
        lines += [f"### {_TITLES[kind]}, {_count(threads)}", "", *_table(chosen, kind), ""]
        lines += [*_roofs(chosen, kind)]
    return "\n".join([*lines, *_machines(records)])


def _table(records: list[Record], kind: str) -> list[str]:
    decode = kind != "pp"
    names = ["file", "tokens/s", "MB/token, % of bandwidth"] if decode else ["file", "tokens/s"]
    header = [f"our {names[0]}", *names[1:], "peer", *names[1:], "ratio", "wanted"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    order = list(CONTESTS)
    for record in sorted(records, key=lambda r: (order.index(r["contest"]), not r["counts"], ratio(r))):
        cells = [record["ours"]["file"].removesuffix(".gguf"), _speed(record, "ours")]
        cells += [_bytes(record, "ours")] if decode else []
        cells += [f"{record['peer']} {record['type']}", _speed(record, "theirs")]
        cells += [_bytes(record, "theirs")] if decode else []
        values = ratios(record)
        cells += [f"**{ratio(record):.2f}** ({min(values):.2f} to {max(values):.2f})", _verdict(record)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _roofs(records: list[Record], kind: str) -> list[str]:
    """Our own share of what the machine can do, in the best run of a contest."""
    lines: list[str] = []
    for name in dict.fromkeys(record["contest"] for record in records):
        mine = [record for record in records if record["contest"] == name]
        if kind == "tg" and name.startswith("ternary"):
            best = max(share(record, "ours") or 0.0 for record in mine)
            lines.append(_roof(f"{name}, bytes a second over the read bandwidth", best, _ROOF_SHARE))
        if kind == "pp" and name in ("ternary-q4", "ternary", "w2"):
            best = max(record["ours"].get("int8_share") or 0.0 for record in mine)
            lines.append(_roof(f"{name}, multiply-adds a second over the int8 peak", best, _INT8_SHARE))
    return [*lines, ""] if lines else []


def _roof(what: str, value: float, least: float) -> str:
    verdict = "met" if value >= least else "not met"
    return f"* Our {what}: {100 * value:.0f} %; wanted {100 * least:.0f} %: {verdict}."


def _speed(record: Record, side: str) -> str:
    samples = record[side]["samples"]
    return f"{statistics.median(samples):.1f}, best {max(samples):.1f}"


def _bytes(record: Record, side: str) -> str:
    part = share(record, side)
    return "-" if part is None else f"{record[side]['bytes'] / 1e6:.0f}, {100 * part:.0f} %"


def _verdict(record: Record) -> str:
    least = wanted(record)
    if least is None:
        return ""
    return f"{least:.2f}: {'met' if ratio(record) >= least else 'not met'}"


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _machines(records: Sequence[Record]) -> list[str]:
    lines: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for record in records:
        about = record["machine"]
        day = str(about["date"])[:10]
        place = lines.setdefault((about["cpu"], ", ".join(about["isa"]), day), {})
        place.setdefault(record["threads"], []).append(record["bandwidth"] / 1e9)
    return [
        f"Measured on {cpu} ({isa}), {day}; read bandwidth of the runs: "
        + "; ".join(f"{_count(t)} {min(v):.1f} to {max(v):.1f} GB/s" for t, v in sorted(place.items()))
        + "."
        for (cpu, isa, day), place in lines.items()
    ]
