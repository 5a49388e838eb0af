"""A projection, not a measurement: decode and prefill on machines of more cores, from a report of this one.

The report is of `bitqwen bench FILE.gguf -t 1,2 -p 512 -n 32 --profile -o json`: from it come tokens a
second, bytes and multiply-adds a token, read bandwidth and int8 peak by threads, and, of the profile, the
barriers of a step and the time that one thread computes alone. What a barrier costs comes from barriers.py.
docs/kernels.md has the formula.

    python benchmarks/projection.py report.json --barriers barriers.json --machine 8:2:44.8
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Two channels of DDR5-5600, twelve of DDR5-4800.
MACHINES = ("8:2:44.8", "64:12:38.4")
REACH = 0.8  # of the channels' rate, that reading gets
BARRIER_US = 0.2  # a thread; see docs/kernels.md


@dataclass(frozen=True)
class Machine:
    """One to project onto, of cores like the measured ones."""

    cores: int
    channels: int
    channel_rate: float  # bytes a second

    @classmethod
    def parse(cls, text: str) -> Machine:
        """``CORES:CHANNELS:GB/s of a channel``."""
        try:
            cores, channels, rate = text.split(":")
            found = cls(int(cores), int(channels), float(rate) * 1e9)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: CORES:CHANNELS:GB/s is needed, as 8:2:44.8") from None
        if found.cores < 1 or found.channels < 1 or found.channel_rate <= 0:
            raise argparse.ArgumentTypeError(f"{text}: all three must be above 0")
        return found


@dataclass(frozen=True)
class Measured:
    """What a row of a report says of a step: one decoded token, or one batch of a prompt.

    Attributes:
        seconds: of a step.
        tokens: of a step.
        work: bytes that decoding reads, or multiply-adds of a prompt.
        rate: bytes or multiply-adds a second that all threads together reached at most.
        weights: bytes of weights that a step reads.
        threads: that computed.
        barriers: of a step.
        alone: seconds of a step in which one thread computes and the others wait.
    """

    seconds: float
    tokens: int
    work: float
    rate: float
    weights: float
    threads: int
    barriers: float
    alone: float

    def efficiency(self, barrier: float) -> float:
        """The share of the rate that the shared work reached; a barrier costs so many seconds a thread."""
        shared = self.seconds - self.alone - self.barriers * barrier * self.threads
        return min(1.0, self.work / (shared * self.rate)) if shared > 0 else 1.0

    def on(self, cores: int, rate: float, bandwidth: float, barrier: float) -> float:
        """Projected tokens a second, where all cores together do ``rate`` and read ``bandwidth``."""
        shared = max(self.work / (self.efficiency(barrier) * rate), self.weights / bandwidth)
        return self.tokens / (shared + self.alone + self.barriers * barrier * cores)


def measured(report: Mapping[str, Any], row: Mapping[str, Any]) -> Measured:
    """What a row of our own engine says.

    Raises:
        SystemExit: the report was written without --profile.
    """
    if not row["profile"]:
        raise SystemExit(f"{row['test']} has no profile: write the report with bitqwen bench --profile.")
    operations = row["profile"]["operations"]
    steps = next(operation["calls"] for operation in operations if operation["name"] == "embedding")
    threads = str(row["threads"])
    prefill = row["kind"] == "pp"
    peak = report["int8_gmac_per_second" if prefill else "read_gb_per_second"][threads]
    tokens = row["tokens"] / steps if prefill else 1
    return Measured(
        seconds=tokens / statistics.median(row["samples"]),
        tokens=int(tokens),
        work=row["macs_per_token"] * tokens if prefill else row["bytes_per_token"],
        rate=statistics.median(peak) * 1e9,
        weights=row["weight_bytes"],
        threads=row["threads"],
        barriers=sum(operation["barriers"] for operation in operations) / steps,
        alone=sum(o["seconds"] for o in operations if not o["barriers"]) / steps,
    )


def project(
    report: Mapping[str, Any], machines: Sequence[Machine], reach: float, barrier: float
) -> list[tuple[str, str, Machine, float]]:
    """Model, test, machine and projected tokens a second, of the rows with the most threads."""
    one = {
        name: statistics.median(samples["1"]) * 1e9
        if (samples := report[name]) and "1" in samples
        else max(statistics.median(rates) * 1e9 / int(threads) for threads, rates in samples.items())
        for name in ("read_gb_per_second", "int8_gmac_per_second")
    }
    ours = [row for row in report["rows"] if not row["peer"] and row["engine"] == "bitqwen"]
    most = max(row["threads"] for row in ours)
    found = []
    for row in ours:
        if row["threads"] != most:
            continue
        step = measured(report, row)
        for machine in machines:
            bandwidth = min(
                machine.cores * one["read_gb_per_second"], machine.channels * machine.channel_rate * reach
            )
            rate = bandwidth if row["kind"] == "tg" else machine.cores * one["int8_gmac_per_second"]
            speed = step.on(machine.cores, rate, bandwidth, barrier)
            found.append((row["model"], row["test"], machine, speed))
    return found


def barrier_seconds(path: Path | None) -> float:
    """Of a barrier, for each thread: the median that barriers.py saw with the most threads that had cores."""
    if path is None:
        return BARRIER_US * 1e-6
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]["loops"]
    joined = {row["threads"]: row["joined_us"][1] for row in rows if "joined_us" in row}
    joined.pop(1, None)
    if not joined:
        raise SystemExit(f"{path} has no loops of several threads with a core each.")
    return joined[max(joined)] / max(joined) * 1e-6


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="of bitqwen bench --profile -o json")
    parser.add_argument("--barriers", type=Path, metavar="FILE.json", help="what barriers.py --save wrote")
    parser.add_argument(
        "--machine",
        type=Machine.parse,
        action="append",
        metavar="CORES:CHANNELS:GB/s",
        help=f"may be repeated; default: {', '.join(MACHINES)}",
    )
    parser.add_argument("--reach", type=float, default=REACH, help="share of the channels' rate for reads")
    options = parser.parse_args(arguments)
    report = json.loads(options.report.read_text(encoding="utf-8"))
    barrier = barrier_seconds(options.barriers)
    machines = options.machine or [Machine.parse(text) for text in MACHINES]
    cpu, date = report["machine"]["cpu"], report["machine"]["date"]
    print(f"A projection from {cpu}, {date}; nothing here was measured.")
    print(f"A barrier: {barrier * 1e6:.2f} us a thread. Reads get {options.reach:.0%} of the channels' rate.")
    print()
    print("| model | test | cores | memory | projected t/s |")
    print("|---|---|---|---|---|")
    for model, test, machine, speed in project(report, machines, options.reach, barrier):
        memory = f"{machine.channels} x {machine.channel_rate / 1e9:.1f} GB/s"
        print(f"| {model} | {test} | {machine.cores} | {memory} | {speed:.1f} |")


if __name__ == "__main__":
    main()
