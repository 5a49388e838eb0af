"""Fitting a model into a number of bytes: which type each tensor gets, so that least is lost.

Each tensor has a few ways to be stored, each with its bytes and its expected loss. The best mix for a budget
gives every tensor the same exchange rate between the two; a better one exists only for budgets in between.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bitqwen.errors import UsageError

from .schemes import TensorPlan


class Option(NamedTuple):
    """One way to store a tensor: its bytes, and the expected KL divergence that it costs, in nats."""

    plan: TensorPlan
    nbytes: int
    loss: float


class Allocation(NamedTuple):
    """A mix: a plan for each tensor, and what they take and lose together."""

    plans: dict[str, TensorPlan]
    nbytes: int
    loss: float


def frontier(options: Sequence[Option]) -> list[Option]:
    """The options worth having, smallest first: each byte more buys at most as much as the one before."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda each: (each.nbytes, each.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _rate(hull[-2], option) >= _rate(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def allocate(options: Mapping[str, Sequence[Option]], budget: int) -> Allocation:
    """The mix of least expected loss whose bytes do not exceed a budget.

    Args:
        options: how each tensor may be stored.
        budget: bytes of them all together.

    Raises:
        UsageError: the smallest options together are larger.
    """
    hulls = {name: frontier(each) for name, each in options.items()}
    chosen = dict.fromkeys(hulls, 0)
    nbytes = sum(hull[0].nbytes for hull in hulls.values())
    if nbytes > budget:
        raise UsageError(
            f"the tensors take {nbytes:,} bytes at the least; {budget:,} are left for them",
            hint="Allow more, or take a smaller model: at more bits it beats a larger one at so few.",
        )
    waiting = [(-_rate(hull[0], hull[1]), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(waiting)
    while waiting:
        _, name = heapq.heappop(waiting)
        hull, place = hulls[name], chosen[name]
        more = hull[place + 1].nbytes - hull[place].nbytes
        if nbytes + more > budget:
            continue  # a smaller tensor may still have room
        nbytes += more
        chosen[name] = place + 1
        if place + 2 < len(hull):
            heapq.heappush(waiting, (-_rate(hull[place + 1], hull[place + 2]), name))
    picked = {name: hulls[name][place] for name, place in chosen.items()}
    return Allocation(
        {name: option.plan for name, option in picked.items()},
        nbytes,
        sum(option.loss for option in picked.values()),
    )


def _rate(smaller: Option, larger: Option) -> float:
    """What a byte more buys."""
    return (smaller.loss - larger.loss) / (larger.nbytes - smaller.nbytes)
