"""A report as a Markdown table, CSV, JSON or JSON lines; and two reports side by side."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from bitqwen.errors import ModelFileError, UsageError

from .profiles import Profile
from .results import Report, Row

Format = Literal["md", "csv", "json", "jsonl"]


_ENERGY = {
    "RAPL": "all CPU packages, other programs included",
    "battery": "the whole machine, its screen included",
}


def text(report: Report, form: Format) -> str:
    """The report in one of the four forms; each of them names the machine."""
    return _FORMS[form](report)


def markdown(report: Report) -> str:
    """The machine, a table in llama-bench's manner, and what its last columns mean."""
    rows = report.rows
    several = {
        "engine": len({row.side.engine for row in rows}) > 1,
        "isa": True,
        "kv": len({row.side.kv for row in rows}) > 1,
    }
    columns: list[tuple[str, Callable[[Row], str]]] = [("model", lambda row: row.side.model.stem)]
    columns += [("size", lambda row: f"{row.side.model.stat().st_size / 1e9:.2f} GB")]
    if several["engine"]:
        columns.append(("engine", _engine))
    columns.append(("threads", lambda row: str(row.side.threads)))
    columns.append(("isa", lambda row: str(row.facts.get("isa", "-"))))
    if any(row.facts.get("head") == "screened" for row in rows):
        columns.append(("head", lambda row: str(row.facts.get("head", "-"))))
    if several["kv"]:
        columns.append(("kv", lambda row: row.side.kv))
    columns += [
        ("test", lambda row: row.test.name),
        ("t/s", lambda row: f"{row.mean:.2f} ± {_number(row.sigma)}"),
        ("best", lambda row: f"{row.best:.2f}"),
        ("MB/token", lambda row: _scaled(row.bytes_per_token, 1e6, ".1f")),
        ("GB/s", lambda row: _scaled(row.read_rate, 1e9, ".2f")),
        ("% of peak", _share),
        ("J/token", lambda row: _scaled(row.joules_per_token, 1, ".3f")),
    ]
    if any(row.side.peer for row in rows):
        columns.append(("speed-up", lambda row: _speed_up(row, rows)))
        columns.append(("energy", lambda row: _energy_share(row, rows)))
    right = {
        "size",
        "threads",
        "t/s",
        "best",
        "MB/token",
        "GB/s",
        "% of peak",
        "J/token",
        "speed-up",
        "energy",
    }
    lines = [
        machine_line(report.machine),
        "",
        "| " + " | ".join(name for name, _ in columns) + " |",
        "|" + "|".join("---:" if name in right else "---" for name, _ in columns) + "|",
        *("| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in rows),
        "",
        *_remarks(report),
        *(line for row in rows if row.profile for line in _profile(row, row.profile)),
    ]
    return "\n".join(lines)


def machine_line(about: dict[str, Any]) -> str:
    """The machine in one line."""
    isa = ", ".join(about["isa"])
    return (
        f"{about['cpu']} ({isa}), {about['cores']} CPUs, {about['memory_gib']} GiB; {about['system']}; "
        f"{about['date']}"
    )


def _remarks(report: Report) -> list[str]:
    lines = [
        f"Read bandwidth, {threads} threads: best {max(values) / 1e9:.1f} GB/s of {len(values)} passes "
        f"({min(values) / 1e9:.1f} at worst)."
        for threads, values in report.bandwidth.items()
    ]
    lines += [
        f"int8 peak, {threads} threads: {max(values) / 1e9:.0f} GMAC/s."
        for threads, values in report.int8_rate.items()
        if max(values)
    ]
    lines.append(
        "± is one standard deviation of a repetition. % of peak: for tg the share of that bandwidth, for pp "
        "of the int8 peak (the layers' matrices alone)."
    )
    if any((row.bandwidth_share or 0) > 1 for row in report.rows):
        lines.append("More than 100 %: that much of the model stays in a cache, which is faster than memory.")
    if any(row.side.peer for row in report.rows):
        lines.append(
            "speed-up, energy: of ours over the peer's, in the peer's row; of the same model if we ran it."
        )
    for kind in sorted({str(row.facts.get("energy")) for row in report.rows if row.joules_per_token}):
        lines.append(f"J/token: from the counters of {kind}; {_ENERGY[kind]}.")
    reasons = {row.energy_reason for row in report.rows if row.side.engine == "bitqwen"}
    lines += [f"J/token: not readable here: {reason}." for reason in sorted(filter(None, reasons))]
    return lines


def _profile(row: Row, profile: Profile) -> list[str]:
    return [
        "",
        f"{row.test.name}, {row.side.label}: where a token's time goes",
        "",
        *profile.table(),
        "",
        "```text",
        *profile.bar(),
        "```",
    ]


def _engine(row: Row) -> str:
    name = Path(row.side.engine).name
    version = row.facts.get("version")
    return f"{name} {version}" if version else name


def _number(value: float) -> str:
    return "?" if math.isnan(value) else f"{value:.2f}"


def _scaled(value: float | None, unit: float, form: str) -> str:
    return "-" if value is None else format(value / unit, form)


def _share(row: Row) -> str:
    share = row.bandwidth_share if row.test.kind == "tg" else row.int8_share
    return "-" if share is None else f"{share:.0%}"


def _rivals(row: Row, rows: list[Row]) -> list[Row]:
    """Our rows that a peer's is compared with: those of its model, or of every model if we did not run it."""
    ours = [
        other
        for other in rows
        if not other.side.peer
        and (other.side.threads, other.side.kv, other.test) == (row.side.threads, row.side.kv, row.test)
    ]
    return [other for other in ours if other.side.model == row.side.model] or ours


def _speed_up(row: Row, rows: list[Row]) -> str:
    """Our mean over a peer's, in the peer's row."""
    if not row.side.peer:
        return "-"
    rivals = _rivals(row, rows)
    return ", ".join(f"{other.mean / row.mean:.2f}x{_whose(other, rivals)}" for other in rivals) or "-"


def _energy_share(row: Row, rows: list[Row]) -> str:
    """Our joules a token over a peer's, in the peer's row."""
    if not row.side.peer or not row.joules_per_token:
        return "-"
    rivals = [other for other in _rivals(row, rows) if other.joules_per_token is not None]
    return (
        ", ".join(
            f"{(other.joules_per_token or 0) / row.joules_per_token:.2f}x{_whose(other, rivals)}"
            for other in rivals
        )
        or "-"
    )


def _whose(row: Row, rivals: list[Row]) -> str:
    """The model's name, and the instruction set, where several are compared with one peer."""
    parts = [row.side.model.stem] if len({other.side.model for other in rivals}) > 1 else []
    parts += [str(row.side.isa)] if len({other.side.isa for other in rivals}) > 1 else []
    return f" ({' '.join(parts)})" if parts else ""


def _csv(report: Report) -> str:
    records = [_record(report, row) for row in report.as_json()["rows"]]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {key: json.dumps(value) if isinstance(value, list) else value for key, value in record.items()}
        )
    return out.getvalue().rstrip("\n")


def _record(report: Report, row: dict[str, Any]) -> dict[str, Any]:
    about = report.machine
    return row | {"cpu": about["cpu"], "date": about["date"], "system": about["system"]}


def _jsonl(report: Report) -> str:
    return "\n".join(json.dumps(_record(report, row), ensure_ascii=False) for row in report.as_json()["rows"])


_FORMS: dict[str, Callable[[Report], str]] = {
    "md": markdown,
    "csv": _csv,
    "json": lambda report: json.dumps(report.as_json(), ensure_ascii=False, indent=1),
    "jsonl": _jsonl,
}

_KEY = ("engine", "model", "threads", "isa", "kv", "test")


def compare(before: Path, after: Path) -> str:
    """Two saved reports side by side: each row that both have, and the ratio of their means.

    Raises:
        ModelFileError: a file is not a report.
        UsageError: the reports have no row in common.
    """
    one, other = read(before), read(after)
    earlier = {tuple(row[key] for key in _KEY): row for row in one["rows"]}
    common = [(earlier[key], row) for row in other["rows"] if (key := tuple(row[k] for k in _KEY)) in earlier]
    if not common:
        raise UsageError(
            f"{before} and {after} have no row in common.",
            hint="A row is known by " + ", ".join(_KEY) + ".",
        )
    lines = [
        f"A: {before}: {machine_line(one['machine'])}",
        f"B: {after}: {machine_line(other['machine'])}",
        "",
        "| model | threads | isa | test | A t/s | B t/s | B / A | beyond the spread |",
        "|---|---:|---|---|---:|---:|---:|---|",
    ]
    for a, b in common:
        cells = [a["model"], str(a["threads"]), str(a["isa"] or "-"), a["test"]]
        cells += [f"{row['tokens_per_second']:.2f} ± {_number(_spread(row))}" for row in (a, b)]
        cells += [f"{b['tokens_per_second'] / a['tokens_per_second']:.3f}", _significant(a, b)]
        lines.append("| " + " | ".join(cells) + " |")
    if one["machine"]["cpu"] != other["machine"]["cpu"]:
        lines += ["", "The two were measured on different machines."]
    return "\n".join(lines)


def _spread(row: dict[str, Any]) -> float:
    return math.nan if row["sigma"] is None else float(row["sigma"])


def _significant(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Whether the means differ by more than two standard errors of their difference."""
    counts = len(a["samples"]), len(b["samples"])
    if min(counts) < 2:
        return "unknown"
    error = math.sqrt(_spread(a) ** 2 / counts[0] + _spread(b) ** 2 / counts[1])
    return "yes" if abs(a["tokens_per_second"] - b["tokens_per_second"]) > 2 * error else "no"


def read(path: Path) -> dict[str, Any]:
    """A report that was written with ``-o json``.

    Raises:
        ModelFileError: it is none.
    """
    hint = "Reports are written by: bitqwen bench MODEL -o json > FILE"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON.", hint=hint) from error
    if not isinstance(document, dict) or document.get("bitqwen_bench") != 1:
        raise ModelFileError(f"{path} is not a report of bitqwen bench.", hint=hint)
    return document
