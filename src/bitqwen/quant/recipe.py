"""Recipes: the chain of steps by which a calibrated conversion quantises each matrix.

``fit+gptq:0.3+descent:2`` reads: scales fitted with the inputs' importance, codes by error feedback with 0.3
of all correlations taken off, then two rounds of coordinate descent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType

from . import codebooks, sweeps, vector_sweeps
from .grid import Grid, Matrix, is_grid
from .methods import Encoded, Statistics, quantize
from .rotation import Rotation
from .schemes import TensorPlan
from .sweeps import shrunk
from .vector_sweeps import Vectors, is_vector_type

DEFAULT_RECIPE = "fit+rotate+gptq+descent+distil"
# A few ten thousand tokens say little about thousands of columns: with less, sweeps learn the text by heart.
# See docs/quantising.md.
_DAMPING = 0.3
ROTATE, PROPAGATE, DISTIL = "rotate", "propagate", "distil"
_SWEPT_VALUES = 64 << 20  # of a matrix at a time; sweeps hold three times as many


_Step = Callable[[Matrix, Grid | Vectors, Matrix, float, int], None]


class _Kind(NamedTuple):
    run: _Step | None  # None: done by who knows more than a matrix and its moments
    value: float
    least: float
    most: float
    what: str


def _gptq(matrix: Matrix, fitted: Grid | Vectors, moments: Matrix, value: float, threads: int) -> None:
    if isinstance(fitted, Vectors):
        vector_sweeps.feedback(matrix, fitted, moments, damping=value, threads=threads)
    else:
        sweeps.feedback(matrix, fitted, moments, damping=value, threads=threads)


def _descend(
    matrix: Matrix, fitted: Grid | Vectors, moments: Matrix, rounds: int, scales: bool, threads: int
) -> None:
    if isinstance(fitted, Vectors):
        vector_sweeps.descend(
            matrix, fitted, moments, damping=_DAMPING, rounds=rounds, fit_scales=scales, threads=threads
        )
    else:
        sweeps.descend(
            matrix, fitted, moments, damping=_DAMPING, rounds=rounds, fit_steps=scales, threads=threads
        )


def _descent(matrix: Matrix, fitted: Grid | Vectors, moments: Matrix, value: float, threads: int) -> None:
    _descend(matrix, fitted, moments, int(value), True, threads)


def _codes(matrix: Matrix, fitted: Grid | Vectors, moments: Matrix, value: float, threads: int) -> None:
    _descend(matrix, fitted, moments, int(value), False, threads)


# After the fit, what may follow: each with its number, unless another is given after a colon.
STEPS: dict[str, _Kind] = {
    ROTATE: _Kind(
        None,
        1,
        1,
        1,
        "matrices quantised in columns that a Hadamard matrix mixes, in files with vector codebooks",
    ),
    PROPAGATE: _Kind(
        None,
        1,
        0.0,
        1.0,
        "aim at the source's outputs on inputs that earlier errors have changed; its number is the greatest "
        "share of the difference to take on",
    ),
    "gptq": _Kind(
        _gptq,
        _DAMPING,
        1e-5,
        1.0,
        "error feedback from column to column; its number is the share taken off all correlations",
    ),
    "descent": _Kind(
        _descent, 2, 1, 20, "coordinate descent on codes and scales; its number is how many rounds"
    ),
    "codes": _Kind(_codes, 2, 1, 20, "the same on codes alone"),
    DISTIL: _Kind(
        None,
        1,
        1,
        20,
        "at the end, norms, biases and row scales of the whole file moved to where its predictions come "
        "nearest to the source's; its number is how often its text is gone through",
    ),
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
    def rotate(self) -> bool:
        """Whether matrices are rotated before they are quantised."""
        return ROTATE in dict(self.steps)

    @property
    def propagate(self) -> float:
        """The greatest share of earlier errors to make up for; 0 for none."""
        return dict(self.steps).get(PROPAGATE, 0.0)

    @property
    def distil(self) -> int:
        """How often distillation goes through the text; 0 for none."""
        return int(dict(self.steps).get(DISTIL, 0))

    @property
    def sweeps(self) -> bool:
        """Whether it chooses codes by how inputs go together."""
        return any(STEPS[name].run is not None for name, _ in self.steps)

    @property
    def needs_moments(self) -> bool:
        """Whether it uses the inputs' second moments, beyond their importance."""
        return any(name != DISTIL for name, _ in self.steps)

    def run(
        self,
        matrix: Matrix,
        tensor_type: TensorType,
        *,
        method: str,
        statistics: Statistics,
        rotation: Rotation | None = None,
        threads: int = 0,
    ) -> Encoded:
        """Quantises a matrix; types that are no grid of codes, and fixed rules, get their method alone.

        Args:
            matrix: float32 [rows, cols].
            tensor_type: the type to write.
            method: a name in ``bitqwen.quant.METHODS``, for the fit.
            statistics: of its inputs.
            rotation: if its columns are to be rotated, which needs the inputs' moments.
            threads: 0 for one per core.

        Raises:
            UnsupportedModelError, UsageError: as :func:`bitqwen.quant.quantize`.
        """
        if rotation is not None:
            matrix = rotation.turned(matrix, threads=threads)
            statistics = rotation.statistics(statistics, threads=threads)
        moments = statistics.moments
        sweepable = method != "absmean" and (is_grid(tensor_type) or is_vector_type(tensor_type))
        if not self.needs_moments or moments is None or not sweepable:
            return quantize(matrix, tensor_type, method=method, statistics=statistics, threads=threads)
        if statistics.samples:
            moments = shrunk(moments, statistics.samples)
        if is_vector_type(tensor_type):
            return self._vectors(matrix, tensor_type, statistics.importance, moments, threads)
        fitted = quantize(matrix, tensor_type, method=method, statistics=statistics, threads=threads)
        if not np.isfinite(fitted.error):
            return fitted
        grid = Grid.read(tensor_type, fitted.data, *matrix.shape)
        if method == "ternary" and grid.high > 1:  # three of a wider type's levels
            return fitted
        for run, value in self._runs():
            run(matrix, grid, moments, value, threads)
        data = grid.write()
        lost = matrix - Grid.read(tensor_type, data, *matrix.shape).values()
        return Encoded(data, float(np.vdot(lost, lost)), fitted.energy)

    def quantizer(
        self, statistics: Statistics, rotation: Rotation | None = None
    ) -> Callable[[Matrix, TensorPlan, int], Encoded]:
        """The same as a function of rows of one matrix, how to store them, and threads."""

        def run(rows: Matrix, plan: TensorPlan, threads: int) -> Encoded:
            return self.run(
                rows,
                plan.tensor_type,
                method=plan.method,
                statistics=statistics,
                rotation=rotation,
                threads=threads,
            )

        return run

    def _runs(self) -> Iterator[tuple[_Step, float]]:
        for name, value in self.steps:
            run = STEPS[name].run
            if run is not None:
                yield run, value

    def _vectors(
        self, matrix: Matrix, tensor_type: TensorType, importance: Matrix, moments: Matrix, threads: int
    ) -> Encoded:
        matrix = np.ascontiguousarray(matrix, np.float32)
        weights = np.ascontiguousarray(importance, np.float32)
        vectors = Vectors.fit(matrix, tensor_type, importance=weights, threads=threads)
        finite = np.isfinite(vectors.scales).all()  # else a weight is not, which the sums tell
        rows = max(1, _SWEPT_VALUES // matrix.shape[1])
        for begin in range(0, len(matrix) if finite else 0, rows):
            part = slice(begin, begin + rows)
            for run, value in self._runs():
                run(matrix[part], vectors.rows(part), moments, value, threads)
        data = vectors.write(threads=threads)
        sums = codebooks.error(data, matrix, tensor_type, vectors.codebook, threads=threads)
        return Encoded(data, *sums, vectors.codebook)


def _help() -> str:
    parts = "; ".join(f"{name} ({kind.what}, by default {kind.value:g})" for name, kind in STEPS.items())
    return f"A recipe is fit, or fit+STEP[:NUMBER]+..., with the steps: {parts}."
