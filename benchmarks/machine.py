"""What a number was measured on: every benchmark prints it and saves it with its results."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path


def describe() -> dict[str, object]:
    """The CPU's name, the cores this process may use, its instruction set, memory and the date."""
    cpu = platform.processor() or platform.machine()
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                cpu = value.strip()
            elif key.strip() in {"flags", "Features"}:
                flags = set(value.split())
    notable = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_vbmi", "asimddp", "i8mm")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "isa": [flag for flag in notable if flag in flags],
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def save(path: Path, benchmark: str, results: object) -> None:
    """Writes results with the machine's description as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": benchmark, "machine": describe(), "results": results}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
