"""What this machine offers bitqwen, line by line: fine, worth knowing, or broken, each with its cure."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bitqwen import _native
from bitqwen.errors import BitqwenError

from .energy import EnergyMeter
from .machine import Machine, machine

Status = Literal["ok", "warning", "broken"]

_LITTLE_MEMORY = 2 << 30
_LITTLE_DISK = 5 << 30
_PASSES = 5
_READ_BYTES = 256 << 20
_PROBE = "Qwen/Qwen2.5-0.5B-Instruct"
# What each extra adds, by a module that it brings.
_EXTRAS = {"serve": "starlette", "calib": "torch", "test": "llama_cpp"}


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    cure: str = ""

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def checks(*, network: bool = True, self_test: bool = False) -> Iterator[Check]:
    """All checks, one after the other; together they take a few seconds.

    Args:
        network: ask the hub whether it answers.
        self_test: compare every instruction set's kernels with the scalar ones.
    """
    here = machine()
    yield Check("bitqwen", "ok", f"{_version()}, {here.system}")
    yield from _cpu(here)
    yield from _memory(here)
    yield from _instruction_sets()
    yield _tuning()
    yield _compiler()
    yield _disk()
    if network:
        yield _hub()
    yield _energy()
    yield _extras()
    if self_test:
        yield from _self_test()


def _version() -> str:
    from bitqwen import __version__

    return __version__


def _cpu(here: Machine) -> Iterator[Check]:
    cores = f"{here.logical_cpus} logical CPUs"
    if here.physical_cores:
        cores += f" on {here.physical_cores} cores"
    if here.performance_cpus:
        cores += f": {len(here.performance_cpus)} of performance, {len(here.efficiency_cpus)} of efficiency"
    if here.virtual:
        cores += ", a virtual machine"
    yield Check("CPU", "ok", f"{here.cpu}; {cores}")
    allowed = min(float(here.usable_cpus), here.quota or float("inf"))
    if allowed < here.logical_cpus:
        yield Check(
            "CPUs allowed",
            "warning",
            f"this process may use {allowed:g} of {here.logical_cpus}",
            "Raise the container's CPU limit or the affinity mask; threads beyond it only wait.",
        )
    caches = [
        f"L{cache.level} {'' if cache.kind == 'unified' else cache.kind + ' '}{_binary(cache.size)}"
        + (f" x {cache.count}" if cache.count > 1 else "")
        for cache in here.caches
    ]
    yield Check("caches", "ok", ", ".join(caches) or "the system does not tell")
    if len(here.numa_nodes) > 1:
        yield Check(
            "NUMA",
            "warning",
            f"{len(here.numa_nodes)} memory nodes",
            "Keep to one: numactl --cpunodebind=0 --membind=0 bitqwen ...",
        )
    governor = _governor()
    if governor in {"powersave", "conservative"} and not _intel_pstate():
        yield Check(
            "clock",
            "warning",
            f"the governor is {governor}, which keeps clocks low",
            "sudo cpupower frequency-set -g performance",
        )


def _governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return ""


def _intel_pstate() -> bool:
    """Whether "powersave" means something else: with this driver it is the normal, dynamic mode."""
    return Path("/sys/devices/system/cpu/intel_pstate").exists()


def _memory(here: Machine) -> Iterator[Check]:
    available = _native.available_memory()
    found = f"{_binary(here.memory)}, of which {_binary(available)} can be had now"
    if available < _LITTLE_MEMORY:
        yield Check(
            "memory", "warning", found, "Close other programs: a 1.5B model at four bits needs 1.5 GB."
        )
    else:
        yield Check("memory", "ok", found)
    size = min(_READ_BYTES, available // 4)
    counts = sorted({1, here.usable_cpus})
    try:
        speeds = [f"{bandwidth(threads, size) / 1e9:.1f} GB/s with {threads}" for threads in counts]
    except BitqwenError as error:
        yield Check("read bandwidth", "warning", error.message, error.hint)
        return
    yield Check("read bandwidth", "ok", f"{', '.join(speeds)} threads; the best of {_PASSES} passes")


def bandwidth(threads: int, size: int) -> float:
    """The best of a few passes over ``size`` bytes, in bytes a second."""
    peaks = _native.Peaks(threads, size)
    return max(peaks.read_bandwidth() for _ in range(_PASSES))


def _instruction_sets() -> Iterator[Check]:
    usable = _native.usable_isas()
    forced = os.environ.get("BITQWEN_ISA", "")
    try:
        report = _native.isa_report()
    except BitqwenError as error:
        yield Check("kernels", "broken", error.message, f"Unset BITQWEN_ISA, or {error.hint}.")
        return
    if forced and forced != usable[-1]:
        yield Check("kernels", "warning", report, f"Unset BITQWEN_ISA: {usable[-1]} is faster.")
    elif usable == ["scalar"]:
        yield Check(
            "kernels",
            "warning",
            f"{report}: this CPU offers nothing faster to this build",
            "Use an x86-64 CPU with AVX2 (2013 and later), or a 64-bit ARM.",
        )
    else:
        yield Check("kernels", "ok", report)


def _tuning() -> Check:
    from bitqwen.kernels import plans

    if not plans.enabled():
        return Check("tuning", "warning", "off: BITQWEN_TUNING=0", "Unset BITQWEN_TUNING.")
    try:
        place = plans.here()
    except BitqwenError as error:  # the line before says what is wrong
        return Check("tuning", "warning", f"none: {error.message}", error.hint)
    count = len({key for key, _ in plans.load(place)})
    found = f"{count} products, in {place.path}" if count else "none; bitqwen kernels tune MODEL measures it"
    return Check("tuning", "ok", f"with {place.threads} threads: {found}")


def _compiler() -> Check:
    from bitqwen.kernels import compiler

    found = compiler.find()
    if found is None:
        cure = "Only generated kernels need one: apt install g++, or pip install ziglang."
        return Check("compiler", "warning", "none", cure)
    return Check("compiler", "ok", f"{found.version} ({found.command[0]})")


def _disk() -> Check:
    from bitqwen.checkpoints.cache import cache_dir

    folder = cache_dir()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{_binary(free)} free for {folder}"
    if not os.access(existing, os.W_OK):
        return Check(
            "disk", "broken", f"{existing} cannot be written", "Set BITQWEN_CACHE to another folder."
        )
    if free < _LITTLE_DISK:
        return Check("disk", "warning", found, "Free some space, or set BITQWEN_CACHE to another disk.")
    return Check("disk", "ok", found)


def _hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "") not in {"", "0"}:
        return Check("hub", "warning", "offline mode is on", "Unset HF_HUB_OFFLINE to fetch models.")
    from bitqwen.checkpoints import hub

    if hub.reachable(_PROBE):
        return Check("hub", "ok", "it answers")
    cure = "Check the network and HTTPS_PROXY; local files and package:NAME work without it."
    return Check("hub", "warning", "it does not answer within five seconds", cure)


def _energy() -> Check:
    meter = EnergyMeter()
    if meter.reason:
        return Check("energy", "warning", f"not readable: {meter.reason}", meter.cure)
    return Check("energy", "ok", f"{meter.kind}: {', '.join(meter.names)}")


def _extras() -> Check:
    present = [name for name, module in _EXTRAS.items() if importlib.util.find_spec(module) is not None]
    absent = [name for name in _EXTRAS if name not in present]
    found = f"extras with {', '.join(present) or 'nothing'} installed"
    if absent:
        found += f"; without {', '.join(absent)} (pip install 'bitqwen[{absent[0]}]' adds one)"
    versions = [f"numpy {importlib.metadata.version('numpy')}", f"Python at {sys.executable}"]
    return Check("packages", "ok", f"{found}; {', '.join(versions)}")


def _self_test() -> Iterator[Check]:
    results = _native.kernel_self_test()
    for isa in dict.fromkeys(result[0] for result in results):
        of_isa = [result for result in results if result[0] == isa]
        wrong = [f"{kind} ({bad} of {count})" for _, kind, count, bad in of_isa if bad]
        products = sum(count for _, _, count, _ in of_isa)
        if wrong:
            cure = f"Report this, and set BITQWEN_ISA to another than {isa} meanwhile."
            yield Check(f"self-test {isa}", "broken", "differs from scalar: " + ", ".join(wrong), cure)
        else:
            found = f"{products} products of {len(of_isa)} types, every bit as scalar's"
            yield Check(f"self-test {isa}", "ok", found)
    if not results:
        yield Check("self-test", "ok", "this CPU runs the scalar kernels alone, which are the reference")


def _binary(count: float) -> str:
    """``33554432`` -> ``'32 MiB'``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
