"""Which kernels are fastest here, for each product of a model and kind of batch: measured, never guessed.

Candidates take turns in rounds, and the best round of each counts, because what disturbs a measurement only
ever makes it slower. After each round those that are far behind are dropped. Weights are as many copies as it
takes that none is still in a cache when its turn comes again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from bitqwen import _native
from bitqwen.errors import UsageError
from bitqwen.gguf import tensor_bytes

from .plans import Choice, Entry, Timing
from .products import Product

# How far behind the best a candidate may be after each round to stay. As many rounds as numbers.
_MARGINS = (0.40, 0.20, 0.10, 0.06, 0.04, 0.04, 0.04)
# What a change from the default must gain: less is noise, and the default has been seen by more eyes.
_LEAST_GAIN = 0.02
_PEAK_PASSES = 2  # of the machine's own limits, before each product
_PEAK_BYTES = 256 << 20
_LEAST_BYTES = 64 << 20
_CACHES = 4  # times the last-level cache that weights take
_VECTOR_ROWS = 64  # the widest of generated kernels
_LEADERS = 2  # kernels whose cuts of the work are tried
_ALONE = 4096  # rows that one thread may do alone
_PREFILL_WORK = 1.5e9  # multiply-adds of one timed product: a few milliseconds


class _Batch(NamedTuple):
    name: str
    columns: int


_BATCHES = (_Batch("1", 1), _Batch("2-4", 4), _Batch("prefill", 128))


class Peaks:
    """What the machine can do at most: the best of all passes so far."""

    def __init__(self, threads: int) -> None:
        self._native = _native.Peaks(threads, _PEAK_BYTES)
        self.read_bandwidth = 0.0
        self.int8_rate = 0.0

    def look(self) -> None:
        """Measures a few passes."""
        for _ in range(_PEAK_PASSES):
            self.read_bandwidth = max(self.read_bandwidth, self._native.read_bandwidth())
            self.int8_rate = max(self.int8_rate, self._native.int8_rate())

    def of(self, batch: str) -> float:
        """The limit of a kind of batch: bytes read a second, or multiply-adds a second."""
        return self.int8_rate if batch == "prefill" else self.read_bandwidth


def tune(
    products: Sequence[Product],
    *,
    threads: int,
    generated: Sequence[str] = (),
    budget: float = 45.0,
    progress: Callable[[Product, str, int, int], None] | None = None,
) -> list[Entry]:
    """Times every candidate for every product.

    Args:
        products: of a model.
        threads: that compute.
        generated: file names of libraries of generated kernels, candidates beside the built-in ones.
        budget: seconds to stay within, where a round of each candidate fits into them: products that are
            taken late make do with fewer rounds.
        progress: told the product and the batch, how many are done, and how many there are.

    Raises:
        ResourceError: not enough memory for the weights of a product.
    """
    peaks = Peaks(threads)
    # A model that fits into the caches is timed there.
    whole = sum(each.count * tensor_bytes(each.tensor_type, each.key[1:]) for each in products)
    rotated = min(whole, max(_LEAST_BYTES, _CACHES * last_level_cache()))
    cases = [(product, batch) for product in products for batch in _BATCHES]
    found: list[Entry] = []
    started = time.monotonic()
    timer, timed = None, None
    for done, (product, batch) in enumerate(cases):
        if progress:
            progress(product, batch.name, done, len(cases))
        peaks.look()
        rows, least = _extent(product, batch, rotated)
        if timer is None or timed != (product, rows):
            timer = None  # gives its memory back before the next takes some
            timer, timed = _timer(product, rows, threads, least), (product, rows)
        until = started + budget * (done + 1) / len(cases)
        found.append(_race(product, batch, timer, rows, generated, until))
    return [replace(entry, peak=peaks.of(entry.batch)) for entry in found]


def _extent(product: Product, batch: _Batch, rotated: int) -> tuple[int, int]:
    """Rows to time, and bytes of all copies. Decode: all rows, from memory. Prefill: enough for a time."""
    rows = product.key.rows
    if batch.name != "prefill":
        return rows, rotated
    fitting = int(_PREFILL_WORK / (product.key.cols * batch.columns)) // 64 * 64
    return min(rows, max(256, fitting)), 0


def last_level_cache() -> int:
    """Bytes, as the system tells; 32 MiB where it does not."""
    try:
        return max(0, os.sysconf("SC_LEVEL3_CACHE_SIZE")) or 32 << 20
    except (ValueError, OSError, AttributeError):
        return 32 << 20


def _timer(product: Product, rows: int, threads: int, least_bytes: int) -> _native.ProductTimer:
    return _native.ProductTimer(int(product.tensor_type), rows, product.key.cols, threads, least_bytes)


def _race(
    product: Product,
    batch: _Batch,
    timer: _native.ProductTimer,
    rows: int,
    generated: Sequence[str],
    until: float,
) -> Entry:
    columns = batch.columns
    isa, default_rows, tile, _ = timer.default_plan(columns)
    default = Choice(isa, default_rows, tile if columns > 1 else 0)

    def seconds(choice: Choice) -> float:
        return timer.seconds(columns, choice.native())

    kernels = kernel_candidates(default, timer.isas(), columns)
    if batch.name != "prefill":  # look-ups share nothing between columns
        kernels += [c for name in generated if usable(c := generated_candidate(default, name), seconds)]
    now = time.monotonic()
    best = run_off(kernels, seconds, until=now + max(0.0, until - now) / 2)
    leading = sorted(best, key=lambda choice: best[choice])[:_LEADERS]
    cuts = [default]
    cuts += [choice for leader in leading for choice in cut_candidates(leader, rows, timer.threads)]
    cuts = list(dict.fromkeys(cuts))
    for choice, took in run_off(cuts, seconds, until=until).items():
        best[choice] = min(took, best.get(choice, took))
    ranked = [Timing(*item) for item in sorted(best.items(), key=lambda item: item[1])]
    standing = Timing(default, best[default])
    winner = ranked[0] if standing.seconds > ranked[0].seconds * (1 + _LEAST_GAIN) else standing
    loser = next((each for each in ranked if each.choice != winner.choice), None)
    read = timer.generated_bytes if winner.choice.library else timer.bytes
    return Entry(product.key, batch.name, columns, rows, read, winner, standing, loser, 0.0)


def generated_candidate(default: Choice, library: str) -> Choice:
    """Generated kernels with the default's cut, in whole look-up vectors."""
    return replace(default, rows=_whole(default.rows), library=library)


def usable(choice: Choice, seconds: Callable[[Choice], float]) -> bool:
    """Whether generated kernels take these weights: not those of other shapes and formats."""
    try:
        seconds(choice)
    except UsageError:
        return False
    return True


def kernel_candidates(default: Choice, isas: Iterable[tuple[str, int]], columns: int) -> list[Choice]:
    """Each instruction set with kernels of its own and each tile, the default first.

    Args:
        default: what the engine does without a plan.
        isas: instruction sets, and the widest tile of each.
        columns: of the batch; a tile of one column is no choice.
    """
    found = [default]
    for isa, widest in isas:
        tiles = [widest, widest * 3 // 4, widest // 2] if columns > 1 else [0]
        found += [Choice(isa, default.rows, tile) for tile in tiles if tile > 0 or columns == 1]
    return list(dict.fromkeys(found))


def cut_candidates(choice: Choice, rows: int, threads: int) -> list[Choice]:
    """The same kernels with other rows at a time: parts and multiples, each thread's share, all at once.

    Fewer threads take part where a piece has more rows than their share, and one alone needs no barrier.
    """
    whole, share = _blocks(rows), _blocks(rows / threads)
    sizes = {choice.rows, *(_blocks(choice.rows * n / 4) for n in (1, 2, 8, 16))}
    sizes |= {share, _blocks(share / 2), _blocks(share / 4)}
    if rows <= _ALONE:
        sizes.add(whole)
    if choice.library:
        sizes = {_whole(size) for size in sizes}
    return [replace(choice, rows=size) for size in sorted(sizes) if size <= whole]


def _whole(rows: int) -> int:
    """Rows, rounded up to whole look-up vectors."""
    return math.ceil(rows / _VECTOR_ROWS) * _VECTOR_ROWS


def _blocks(rows: float) -> int:
    """Rows, rounded up to whole blocks of 16; at least one."""
    return max(1, math.ceil(rows / 16)) * 16


def run_off(
    choices: Sequence[Choice], seconds: Callable[[Choice], float], *, until: float = math.inf
) -> dict[Choice, float]:
    """The best time of each choice; the first one, the default, stays in every round.

    Args:
        choices: that take turns.
        seconds: times one.
        until: no round begins after it but the first, by :func:`time.monotonic`.
    """
    best: dict[Choice, float] = {}
    running = list(choices)
    for margin in _MARGINS:
        if best and time.monotonic() > until:
            break
        for choice in running:
            best[choice] = min(best.get(choice, float("inf")), seconds(choice))
        limit = min(best.values()) * (1 + margin)
        running = [choice for choice in running if choice == choices[0] or best[choice] <= limit]
    return best
