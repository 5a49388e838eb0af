"""Second moments of a matrix's inputs, as sweeps are to use them.

Plain moments count tokens by the squared length of their inputs. That is not what they matter: after the
first layers a chunk's first token has an enormous residual stream and, once normalised, inputs so short that
its key and value hardly show in the moments of q, k and v, though most attention goes there. Sweeps move
errors to where they cost nothing, so they would move them precisely there. First tokens therefore count by
how much the predictions depend on them.
"""

from __future__ import annotations

import numpy as np

from bitqwen.quant.sweeps import shrunk

from .transformer import Matrix

_ROWS = 4096  # tokens multiplied at once


def second_moments(x: Matrix, *, chunk: int = 0, first_weight: float = 1.0) -> Matrix:
    """The mean of x x' over inputs, without the correlations that so few of them cannot prove.

    First tokens of chunks are kept apart from the estimate of what chance has done: they are nearly the same
    vector each time, and what a few of them say is certain.

    Args:
        x: float32 [tokens, cols]; whole chunks.
        chunk: tokens of a chunk; 0 if all count the same.
        first_weight: how much the first token of a chunk counts, others counting one.

    Returns:
        float32 [cols, cols], symmetric.
    """
    tokens, cols = x.shape
    first = np.arange(0, tokens, chunk) if chunk else np.arange(0)
    rest = np.ones(tokens, bool)
    rest[first] = False
    moments = np.zeros((cols, cols), np.float32)
    for begin in range(0, tokens, _ROWS):
        part = x[begin : begin + _ROWS][rest[begin : begin + _ROWS]]
        # The same array on both sides: BLAS then computes one triangle only.
        moments += part.T @ part
    sink = x[first]
    certain = sink.T @ sink
    others = tokens - len(first)
    total = np.float32(others + first_weight * len(first))
    if others:
        moments = shrunk(moments, others)
    moments += np.float32(first_weight) * certain
    moments /= total
    return moments
