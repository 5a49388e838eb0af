"""What a number was measured on: CPU, caches, cores and memory, asked of the system and never guessed."""

from __future__ import annotations

import datetime
import os
import platform
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_NOTABLE_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_vbmi",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
)
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Cache:
    """One kind of cache: ``count`` of ``size`` bytes, each shared by ``shared_by`` logical CPUs."""

    level: int
    kind: str
    size: int
    count: int
    shared_by: int


@dataclass(frozen=True)
class Machine:
    """A machine as the process sees it.

    Attributes:
        cpu: the processor's own name.
        logical_cpus: of the whole machine.
        physical_cores: without hyper-threads; None where the system does not tell.
        usable_cpus: logical CPUs in this process's affinity mask.
        quota: CPUs that the control group allows, a fraction possibly; None without a limit.
        performance_cpus: logical CPUs of the fast kind; empty unless the machine has two kinds.
        efficiency_cpus: those of the slower kinds.
        isa: notable instruction sets, by the system's names.
        caches: smallest level first.
        numa_nodes: logical CPUs of each memory node.
        memory: bytes installed, as far as this system sees.
        system: kernel, architecture and Python.
        virtual: whether a hypervisor says that it runs below.
    """

    cpu: str
    logical_cpus: int
    physical_cores: int | None
    usable_cpus: int
    quota: float | None
    performance_cpus: list[int]
    efficiency_cpus: list[int]
    isa: list[str]
    caches: list[Cache]
    numa_nodes: list[list[int]]
    memory: int
    system: str
    virtual: bool

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def machine(root: Path = Path("/")) -> Machine:
    """This machine.

    Args:
        root: where /proc and /sys lie; another folder in tests.
    """
    name, flags = _cpuinfo(root)
    cpus = _numbers(root / "sys/devices/system/cpu/online") or list(range(os.cpu_count() or 1))
    fast, slow = _kinds(root, cpus)
    return Machine(
        cpu=name,
        logical_cpus=len(cpus),
        physical_cores=_physical_cores(root, cpus),
        usable_cpus=_affinity(),
        quota=_quota(root),
        performance_cpus=fast,
        efficiency_cpus=slow,
        isa=[flag for flag in _NOTABLE_FLAGS if flag in flags],
        caches=_caches(root, cpus),
        numa_nodes=_numa(root),
        memory=_memory(root),
        system=f"{platform.system()} {platform.release()} {platform.machine()}, "
        f"Python {platform.python_version()}",
        virtual="hypervisor" in flags,
    )


def describe() -> dict[str, Any]:
    """A short form for results: date, CPU, cores this process may use, instruction sets, memory, system."""
    here = machine()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": here.cpu,
        "cores": here.usable_cpus,
        "isa": here.isa,
        "memory_gib": round(here.memory / 2**30, 1),
        "system": here.system,
    }


def _cpuinfo(root: Path) -> tuple[str, set[str]]:
    """The processor's name and its flags."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model"}:
            name = value.strip()
        elif key.strip() in {"flags", "Features"}:
            flags = set(value.split())
    return name, flags


def _text(path: Path) -> str:
    """A file's text; empty if it cannot be read, as much of /sys cannot in containers."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _numbers(path: Path) -> list[int]:
    """A list as the kernel writes it: ``0-3,8`` -> [0, 1, 2, 3, 8]."""
    found: list[int] = []
    for part in _text(path).split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()):
            first, last = int(match[1]), int(match[2] or match[1])
            found += range(first, min(last, first + 65535) + 1)
    return found


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    """CPUs that control group version 2 allows at its root, which is a container's own group."""
    parts = _text(root / "sys/fs/cgroup/cpu.max").split()
    if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit() and int(parts[1]):
        return int(parts[0]) / int(parts[1])
    return None


def _physical_cores(root: Path, cpus: list[int]) -> int | None:
    cores = {
        _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus
    } - {""}
    return len(cores) or None


def _kinds(root: Path, cpus: list[int]) -> tuple[list[int], list[int]]:
    """Fast and slower CPUs: as Intel's kernel driver lists them, else by ARM's capacities."""
    fast, slow = (_numbers(root / f"sys/devices/{kind}/cpus") for kind in ("cpu_core", "cpu_atom"))
    if fast and slow:
        return fast, slow
    capacity = {cpu: _text(root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity") for cpu in cpus}
    known = {cpu: int(value) for cpu, value in capacity.items() if value.isdigit()}
    if len(set(known.values())) < 2:
        return [], []
    best = max(known.values())
    return [c for c in known if known[c] == best], [c for c in known if known[c] < best]


def _caches(root: Path, cpus: list[int]) -> list[Cache]:
    seen: dict[tuple[int, str, int, int], set[str]] = {}
    for cpu in cpus:
        for folder in sorted((root / f"sys/devices/system/cpu/cpu{cpu}/cache").glob("index*")):
            match = re.fullmatch(r"(\d+)([KMG]?)", _text(folder / "size"))
            level = _text(folder / "level")
            if not match or not level.isdigit():
                continue
            size = int(match[1]) * _UNITS.get(match[2], 1)
            shared = _text(folder / "shared_cpu_list")
            kind = (
                int(level),
                _text(folder / "type").lower(),
                size,
                len(_numbers(folder / "shared_cpu_list")),
            )
            seen.setdefault(kind, set()).add(shared)
    return [
        Cache(level, kind, size, len(sharers), max(shared, 1))
        for (level, kind, size, shared), sharers in sorted(seen.items())
    ]


def _numa(root: Path) -> list[list[int]]:
    nodes = sorted(
        (root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda path: int(path.name[4:] or 0)
    )
    return [_numbers(node / "cpulist") for node in nodes]


def _memory(root: Path) -> int:
    if match := re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE):
        return int(match[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
