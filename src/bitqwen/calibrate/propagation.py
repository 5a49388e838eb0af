"""Errors of earlier matrices, made up for by later ones.

Once matrices have been rounded, those after them no longer meet the source's inputs. So each aims at what
the source's own matrix puts out on the source's inputs, from the inputs that it will really get: it takes on
what the least squares of the difference say (Arai and Ichikawa 2025, arXiv 2504.09629; Li et al. 2025, arXiv
2504.02692). A matrix whose outputs are added to the residual stream aims at the source's stream.

So few tokens also show differences that are chance. The halves of the text are therefore asked apart, and
only as much is taken on of what both say as helps each on the tokens of the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bitqwen.checkpoints import Checkpoint
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant.sweeps import damped

from .transformer import Matrix, run_layer

_DAMPING = 0.3  # as the sweeps'
_ASKED = 8  # of so many rows one, when a share is estimated
_INTO_STREAM = ("o_proj.weight", "down_proj.weight")


class Aim(NamedTuple):
    """What a matrix of the source meets.

    Attributes:
        inputs: its inputs, float32 [tokens, cols].
        stream: the residual stream that its outputs are added to, float32 [tokens, rows]; None if they are
            not.
    """

    inputs: Matrix
    stream: Matrix | None


def aims(
    stream: Matrix, chunk: int, layer: int, checkpoint: Checkpoint, config: Qwen2Config
) -> dict[str, Aim]:
    """Runs a layer of the source as it is; ``stream`` is replaced by its output.

    Returns:
        What its matrices meet, by their Hugging Face names.
    """
    found: dict[str, Aim] = {}

    def note(names: tuple[str, ...], x: Matrix) -> dict[str, Matrix]:
        into_stream = names[0].endswith(_INTO_STREAM)
        found.update(dict.fromkeys(names, Aim(x, stream.copy() if into_stream else None)))
        return {name: checkpoint.read(name) for name in names}

    run_layer(stream, chunk, layer, checkpoint, config, note)
    return found


def compensated(
    matrix: Matrix,
    aim: Aim,
    inputs: Matrix,
    stream: Matrix,
    moments: Matrix,
    *,
    chunk: int,
    first_weight: float = 1.0,
    most: float = 1.0,
) -> tuple[Matrix, float]:
    """The matrix that comes nearest to the source's outputs on the inputs that it gets.

    Args:
        matrix: float32 [rows, cols].
        aim: what it meets in the source.
        inputs: what it meets here, float32 [tokens, cols]; whole chunks.
        stream: the residual stream here, float32 [tokens, hidden].
        moments: of ``inputs``, float32 [cols, cols].
        chunk: tokens of a chunk.
        first_weight: how much a chunk's first token counts, others counting one.
        most: the greatest share of the difference to take on.

    Returns:
        float32 [rows, cols], and the share that was taken on.
    """
    half = len(inputs) // chunk // 2 * chunk
    if half == 0:
        return matrix, 0.0
    crosses = []
    for rows in (slice(0, half), slice(half, None)):
        counts = np.ones((len(inputs[rows]), 1), np.float32)
        counts[::chunk] = first_weight
        counts /= counts.sum(dtype=np.float32)
        lost = (aim.inputs[rows] - inputs[rows]) * counts
        cross = np.linalg.multi_dot([matrix, lost.T, inputs[rows]])
        del lost
        if aim.stream is not None:
            cross += ((aim.stream[rows] - stream[rows]) * counts).T @ inputs[rows]
        crosses.append(cross)
    both = np.concatenate(crosses)
    if not both.any():
        return matrix, 0.0
    changes = np.split(np.linalg.solve(damped(moments, _DAMPING), both.T).T, 2)
    # The share s of one half's change C that helps the other most, of whose tokens the difference is B:
    # tr(B C') s is gained, and tr(C H C') s^2 / 2 lost.
    gained = float(np.vdot(changes[0], crosses[1]) + np.vdot(changes[1], crosses[0]))
    cost = sum(_energy(change[::_ASKED], moments) for change in changes) * len(matrix)
    share = min(max(gained / cost, 0.0), most) if cost > 0.0 else 0.0
    return np.asarray(matrix + np.float32(0.5 * share) * (changes[0] + changes[1]), np.float32), share


def _energy(rows: Matrix, moments: Matrix) -> float:
    """Mean squared output of a row."""
    return float(np.vdot(rows, rows @ moments)) / len(rows)
