"""How much each matrix matters: one pass back through the model for all of them.

If a matrix loses the share e of its outputs' energy, the model's predictions change by about ``nats * e``.
The second derivative of the KL divergence at zero is the Fisher information, the expected square of the
gradient G of log p(tokens) with tokens drawn from the model itself: an error E of the weights costs
<G, E>^2 / 2. Errors are taken as independent noise, the larger in a column, the less its inputs matter, as
quantising with importance makes them. No other model and no right answers are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint
from bitqwen.models.qwen2 import Qwen2Config

from .backward import EMBEDDING, NoteHead, first_weight, head_name, run_back
from .moments import noise_weights
from .transformer import Matrix, embed, mean_squares

Array = npt.NDArray[np.float32]


class Sensitivity(NamedTuple):
    """What is known of a matrix.

    Attributes:
        nats: KL divergence a token, for each share of the outputs' energy that is lost, while it is small.
        importance: mean squares of its inputs, float32 [cols]; ones for rows that are only looked up.
        energy: mean squared length of its outputs.
        first_weight: how much a chunk's first token counts, others counting one; see
            :func:`bitqwen.calibrate.backward.first_token_weights`.
    """

    nats: float
    importance: Array
    energy: float
    first_weight: float = 1.0


def sensitivities(
    checkpoint: Checkpoint,
    config: Qwen2Config,
    ids: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Sensitivity]:
    """The sensitivity of every matrix, by its Hugging Face name; a tied embedding's is that of both its uses.

    Takes about three passes over the text. Memory: the residual stream before each layer, one layer, and the
    output head in float32.

    Args:
        checkpoint: the model.
        config: its configuration.
        ids: a text, int64 [chunks, tokens].
        seed: of the tokens drawn.
        progress: called with layers done and layers in all, twice the model's.
    """
    tokens, chunk = ids.size, ids.shape[1]
    found: dict[str, Sensitivity] = {}

    def note(name: str, inputs: Matrix, outputs: Matrix, slope: Matrix) -> None:
        energy = _energy(outputs)
        nats = energy * _nats_per_energy(inputs, slope, chunk) / tokens
        found[name] = Sensitivity(nats, mean_squares(inputs), energy, first_weight(slope, chunk))

    head = _Head()
    gradient = run_back(checkpoint, config, ids, note, note_head=head.begin, seed=seed, progress=progress)
    name = head_name(checkpoint, config)
    found[name] = head.sensitivity()
    energy = _energy(embed(checkpoint, config, ids.ravel()))
    nats = energy * _nats_per_row_energy(gradient, ids) / tokens
    if name == EMBEDDING:
        found[EMBEDDING] = found[EMBEDDING]._replace(nats=found[EMBEDDING].nats + nats)
    else:
        found[EMBEDDING] = Sensitivity(nats, np.ones(config.hidden_size, np.float32), energy)
    return found


class _Head:
    """The output head's sensitivity, summed up piece by piece."""

    def begin(self, name: str, x: Matrix) -> NoteHead:
        self._importance = mean_squares(x)
        scaled = x * (1.0 / np.sqrt(noise_weights(self._importance)))
        self._squares = self._energy = 0.0
        self._tokens, self._values = x.shape

        def note(rows: slice, logits: Matrix, slope: Matrix) -> None:
            # |sum of g x'|^2 by the tokens' products: the head's gradient itself is as large as the head.
            here = scaled[rows]
            self._squares += float(np.sum((slope @ slope.T) * (here @ here.T), dtype=np.float64))
            self._energy += float(np.vdot(logits, logits))
            self._vocabulary = logits.shape[1]

        return note

    def sensitivity(self) -> Sensitivity:
        energy = self._energy / self._tokens
        nats = 0.5 * energy * self._squares / (self._vocabulary * self._values) / self._tokens
        return Sensitivity(nats, self._importance, energy)


def _energy(outputs: Matrix) -> float:
    """Mean squared length of a row."""
    return float(np.square(outputs, dtype=np.float64).sum()) / len(outputs)


def _nats_per_energy(inputs: Matrix, slope: Matrix, chunk: int) -> float:
    """Of all tokens together, for noise that costs the outputs one unit of energy.

    The variance of the noise in a column is v over the column's weight, so that each column costs as much:
    rows * cols * v in all.
    """
    weights = noise_weights(mean_squares(inputs))
    squares = 0.0
    for begin in range(0, len(inputs), chunk):
        # Tokens of a chunk act on each other; those of different chunks are drawn independently.
        rows = slice(begin, begin + chunk)
        gradient = slope[rows].T @ inputs[rows]
        columns = np.einsum("ij,ij->j", gradient, gradient)
        squares += float((columns / weights).sum(dtype=np.float64))
    return 0.5 * squares / float(slope.shape[1] * inputs.shape[1])


def _nats_per_row_energy(slope: Matrix, ids: npt.NDArray[np.int64]) -> float:
    """The same for an embedding's rows, each off in the same way wherever its token stands."""
    squares = 0.0
    for chunk, part in zip(ids, slope.reshape(*ids.shape, -1), strict=True):
        known, places = np.unique(chunk, return_inverse=True)
        sums = np.zeros((len(known), part.shape[1]), np.float64)
        np.add.at(sums, places.ravel(), part)
        squares += float(np.square(sums).sum())
    return 0.5 * squares / float(slope.shape[1])
