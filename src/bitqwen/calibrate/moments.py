"""Second moments of a matrix's inputs, as sweeps are to use them.

Plain moments count tokens by the squared length of their inputs. That is not what they matter: after the
first layers a chunk's first token has an enormous residual stream and, once normalised, inputs so short that
its key and value hardly show in the moments of q, k and v, though most attention goes there. Sweeps move
errors to where they cost nothing, so they would move them precisely there. First tokens therefore count by
how much the predictions depend on them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen.quant.sweeps import shrunk

from .transformer import Matrix

_ROWS = 4096  # tokens multiplied at once
_COLUMNS = 1024  # that first tokens are added to at once


class Moments(NamedTuple):
    """Sums over inputs, first tokens of chunks apart.

    They are nearly the same vector each time, and what a few of them say is certain; the rest is estimated.

    Attributes:
        rest: the sum of x x' over the others, float32 [cols, cols].
        others: how many they are.
        first: first tokens, float32 [chunks, cols].
    """

    rest: Matrix
    others: int
    first: Matrix

    @classmethod
    def of(cls, x: Matrix, chunk: int) -> Moments:
        """Of inputs float32 [tokens, cols]; whole chunks, or a chunk of 0 if no token is a first one."""
        tokens, cols = x.shape
        first = np.arange(0, tokens, chunk) if chunk else np.arange(0)
        rest = np.ones(tokens, bool)
        rest[first] = False
        moments = np.zeros((cols, cols), np.float32)
        for begin in range(0, tokens, _ROWS):
            part = x[begin : begin + _ROWS][rest[begin : begin + _ROWS]]
            # The same array on both sides: BLAS then computes one triangle only.
            moments += part.T @ part
        return cls(moments, tokens - len(first), x[first])

    def weighed(self, first_weight: float) -> Matrix:
        """The mean of x x', a first token counting so much and others one, without chance correlations."""
        count = np.float32(first_weight)
        moments: Matrix = shrunk(self.rest, self.others) if self.others else self.rest.copy()
        total = np.float32(self.others + count * len(self.first))
        for begin in range(0, len(moments), _COLUMNS):
            rows = slice(begin, begin + _COLUMNS)
            moments[rows] += count * (self.first[:, rows].T @ self.first)
            moments[rows] /= total
        return moments


def noise_weights(importance: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What the error of each column weighs: its importance, and a little for those that are hardly used."""
    return np.asarray(importance + np.float32(0.01) * importance.mean() + np.float32(1e-30), np.float32)


def second_moments(x: Matrix, *, chunk: int = 0, first_weight: float = 1.0) -> Matrix:
    """The mean of x x' over inputs, without the correlations that so few of them cannot prove.

    Args:
        x: float32 [tokens, cols]; whole chunks.
        chunk: tokens of a chunk; 0 if all count the same.
        first_weight: how much the first token of a chunk counts, others counting one.

    Returns:
        float32 [cols, cols], symmetric.
    """
    return Moments.of(x, chunk).weighed(first_weight)
