"""Recipes: the chain of steps by which a calibrated conversion quantises each matrix.

``fit+gptq:0.02+descent:2`` reads: scales fitted with the inputs' importance, codes by error feedback with a
damping of 0.02, then two rounds of coordinate descent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType

from .grid import Grid, Matrix, is_grid
from .methods import Encoded, Statistics, quantize
from .sweeps import descend, feedback, shrunk

# Sweeps halve what outputs lose, yet have not lowered the divergence of predictions: see docs/quality.md.
DEFAULT_RECIPE = "fit"
_DESCENT_DAMPING = 0.05


class _Kind(NamedTuple):
    run: Callable[[Matrix, Grid, Matrix, float, int], None]
    value: float
    least: float
    most: float
    what: str


def _gptq(matrix: Matrix, grid: Grid, moments: Matrix, value: float, threads: int) -> None:
    feedback(matrix, grid, moments, damping=value, threads=threads)


def _descent(matrix: Matrix, grid: Grid, moments: Matrix, value: float, threads: int) -> None:
    descend(matrix, grid, moments, damping=_DESCENT_DAMPING, rounds=int(value), threads=threads)


def _codes(matrix: Matrix, grid: Grid, moments: Matrix, value: float, threads: int) -> None:
    descend(
        matrix, grid, moments, damping=_DESCENT_DAMPING, rounds=int(value), fit_steps=False, threads=threads
    )


# After the fit, what may follow: each with its number, unless another is given after a colon.
STEPS: dict[str, _Kind] = {
    "gptq": _Kind(_gptq, 0.05, 1e-5, 1.0, "error feedback from column to column; its number is the damping"),
    "descent": _Kind(
        _descent, 2, 1, 20, "coordinate descent on codes and scales; its number is how many rounds"
    ),
    "codes": _Kind(_codes, 2, 1, 20, "the same on codes alone"),
}


@dataclass(frozen=True)
class Recipe:
    """A parsed recipe.

    Attributes:
        text: as it was given.
        steps: names in ``STEPS`` and their numbers, after the fit.
    """

    text: str
    steps: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Reads ``fit`` or ``fit+STEP[:NUMBER]+...``.

        Raises:
            UsageError: a step is not known, or its number is out of range.
        """
        first, *others = text.split("+")
        if first != "fit":
            raise UsageError(f"recipe {text!r} does not begin with 'fit'", hint=_help())
        steps = []
        for part in others:
            name, given, number = part.partition(":")
            kind = STEPS.get(name)
            if kind is None:
                raise UsageError(f"recipe {text!r}: the step {name!r} is not known", hint=_help())
            try:
                value = float(number) if given else kind.value
            except ValueError:
                value = float("nan")
            if not kind.least <= value <= kind.most:
                raise UsageError(
                    f"recipe {text!r}: {name} takes a number from {kind.least:g} to {kind.most:g}",
                    hint=_help(),
                )
            steps.append((name, value))
        return cls(text, tuple(steps))

    @property
    def needs_moments(self) -> bool:
        """Whether it uses the inputs' second moments, beyond their importance."""
        return bool(self.steps)

    def run(
        self,
        matrix: Matrix,
        tensor_type: TensorType,
        *,
        method: str,
        statistics: Statistics,
        threads: int = 0,
    ) -> Encoded:
        """Quantises a matrix; types that are no grid of codes, and fixed rules, get their method alone.

        Args:
            matrix: float32 [rows, cols].
            tensor_type: the type to write.
            method: a name in ``bitqwen.quant.METHODS``, for the fit.
            statistics: of its inputs.
            threads: 0 for one per core.

        Raises:
            UnsupportedModelError, UsageError: as :func:`bitqwen.quant.quantize`.
        """
        fitted = quantize(matrix, tensor_type, method=method, statistics=statistics, threads=threads)
        moments = statistics.moments
        sweeps = self.steps and method != "absmean" and moments is not None and is_grid(tensor_type)
        if not sweeps or moments is None or not np.isfinite(fitted.error):
            return fitted
        grid = Grid.read(tensor_type, fitted.data, *matrix.shape)
        if method == "ternary" and grid.high > 1:  # three of a wider type's levels
            return fitted
        if statistics.samples:
            moments = shrunk(moments, statistics.samples)
        for name, value in self.steps:
            STEPS[name].run(matrix, grid, moments, value, threads)
        data = grid.write()
        lost = matrix - Grid.read(tensor_type, data, *matrix.shape).values()
        return Encoded(data, float(np.vdot(lost, lost)), fitted.energy)


def _help() -> str:
    parts = "; ".join(f"{name} ({kind.what}, by default {kind.value:g})" for name, kind in STEPS.items())
    return f"A recipe is fit, or fit+STEP[:NUMBER]+..., with the steps: {parts}."
