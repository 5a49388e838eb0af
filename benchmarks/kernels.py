"""Matrix products alone, by tensor type and width: decode from memory and from the cache, and prefill.

Runs `kernels_benchmark` (CMake option BITQWEN_BENCHMARKS) once for each width and number of threads.
Decode is compared with the read bandwidth, prefill with the rate of int8 multiply-adds, both measured in
turns with the products. The widths are those of Qwen2.5's matrices: 1536 and 8960 are the 1.5B's, 3584 and
18944 the 7B's, 896 and 4864 the 0.5B's, 8192 and 29568 the 72B's.

    python benchmarks/kernels.py build/native/kernels_benchmark --save results.json
    python benchmarks/kernels.py build/native/kernels_benchmark --test cache --threads 1 --k 1536
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import describe, save

WIDTHS = (1536, 3584, 8960, 18944)
TYPES = ("TQ1_0", "TQ2_0", "V2", "V2_5", "V3", "Q2_0", "Q2_K", "Q3_K", "Q4_0", "Q4_K", "Q6_K", "Q8_0")
BLOCKS_OF_256 = ("TQ1_0", "TQ2_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
BLOCKS_OF_128 = ("V2", "V2_5", "V3")
# Name: columns of activations, MiB of weights.
TESTS = {"memory": (1, 256), "cache": (1, 0), "prefill": (512, 256)}
ROW = re.compile(
    r"^(?P<type>\w+) +\d+ \| +(?P<read>[\d.]+) +(?P<bandwidth>[\d.]+) +[\d.]+% "
    r"\| +(?P<rate>[\d.]+) +(?P<peak>[\d.]+) +[\d.]+%$"
)


@dataclass(frozen=True)
class Row:
    """One product: GB/s of the weights in the file's bytes, and 1e9 multiply-adds a second."""

    test: str
    type: str
    k: int
    threads: int
    read: float
    bandwidth: float
    rate: float
    peak: float

    @property
    def share(self) -> float:
        """Of what bounds it: the bandwidth in decode, the multiply-adds in prefill."""
        mine, most = (self.rate, self.peak) if self.test == "prefill" else (self.read, self.bandwidth)
        return mine / most if most > 0 else float("nan")


def parse(output: str, test: str, k: int, threads: int) -> list[Row]:
    """The rows that kernels_benchmark printed."""
    rows = []
    for line in output.splitlines():
        if found := ROW.match(line.strip()):
            figures = {name: float(found[name]) for name in ("read", "bandwidth", "rate", "peak")}
            rows.append(Row(test, found["type"], k, threads, **figures))
    return rows


def fitting(types: Sequence[str], k: int) -> list[str]:
    """Those of the types whose blocks divide k columns."""

    def block(name: str) -> int:
        return 256 if name in BLOCKS_OF_256 else 128 if name in BLOCKS_OF_128 else 64

    return [name for name in types if k % block(name) == 0]


def run(program: Path, test: str, k: int, threads: int, types: Sequence[str], rounds: int) -> list[Row]:
    """All types at one width, in one process.

    Raises:
        RuntimeError: The program fails, or prints fewer rows than it was asked for.
    """
    wanted = fitting(types, k)
    if not wanted:
        return []
    columns, megabytes = TESTS[test]
    options = {"threads": threads, "rounds": rounds, "mb": megabytes, "k": k, "columns": columns}
    command = [str(program), "--types", ",".join(wanted)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = parse(done.stdout, test, k, threads)
    if done.returncode != 0 or [row.type for row in rows] != wanted:
        said = (done.stderr or done.stdout).strip()[-400:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each test, type and number of threads, a column for each width."""
    widths = sorted({row.k for row in rows})
    lines = ["| test | type | threads | " + " | ".join(f"K = {k}" for k in widths) + " |"]
    lines.append("|" + "---|" * (3 + len(widths)))
    cells = {(row.test, row.type, row.threads, row.k): row for row in rows}
    for test, name, threads in dict.fromkeys((row.test, row.type, row.threads) for row in rows):
        texts = []
        for k in widths:
            row = cells.get((test, name, threads, k))
            if row is None:
                texts.append("")
            elif test == "prefill":
                texts.append(f"{row.rate:.0f} GMAC/s, {100 * row.share:.0f} %")
            elif test == "cache":
                texts.append(f"{row.rate:.0f} Gweights/s")
            else:
                texts.append(f"{row.read:.1f} GB/s, {100 * row.share:.0f} %")
        lines.append(f"| {test} | {name} | {threads} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", type=Path, help="kernels_benchmark")
    parser.add_argument("--test", choices=TESTS, action="append", help="default: memory and prefill")
    parser.add_argument("--k", type=int, action="append", help="columns of the weights; may be repeated")
    parser.add_argument("--threads", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--types", default=",".join(TYPES), help="tensor types, separated by commas")
    parser.add_argument("--rounds", type=int, default=7, help="the best of which counts")
    parser.add_argument("--save", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    if not options.program.is_file():
        parser.error(f"{options.program} is no file: build it with -DBITQWEN_BENCHMARKS=ON")
    rows: list[Row] = []
    try:
        for test in options.test or ["memory", "prefill"]:
            for threads in options.threads or [1, 2]:
                for k in options.k or WIDTHS:
                    rows += run(options.program, test, k, threads, options.types.split(","), options.rounds)
                    print(f"{test}, {threads} threads, K = {k}: done", file=sys.stderr)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    facts = describe()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print()
    print(table(rows))
    if options.save:
        save(options.save, "kernels", [{**asdict(row), "share": row.share} for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
