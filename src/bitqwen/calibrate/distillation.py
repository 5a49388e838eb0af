"""Distillation: what a quantised file still learns from its source without a bit more.

Codes are settled, but norms' gains and biases are stored as they are, and the scales of a matrix's blocks can
make each of its rows larger or smaller. All these are moved, by gradient, to where the file's predictions
come nearest to the source's on the calibration text: knowledge distillation (Hinton et al. 2015, arXiv
1503.02531) by Adam (Kingma and Ba 2015, arXiv 1412.6980). That gains alone recover much was found by Li et
al. (Norm Tweaking, 2023, arXiv 2309.02784), that scales do by Chen et al. (EfficientQAT, 2024, arXiv
2407.11062).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint
from bitqwen.checkpoints.gguf import GGUFCheckpoint
from bitqwen.files import atomic_file
from bitqwen.gguf import GGUFFile, TensorType
from bitqwen.gguf.rewrite import rewrite
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant.row_scales import has_scales, scale_rows

from .backward import LAST_NORM, head_name, run_back
from .transformer import Matrix, embed, layer_prefix, rms_norm, run_layer

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_TARGETS, _STATE = "distil-targets.npy", "distil-state.npz"  # of a run that is interrupted
# Of the text, from its beginning: half as many give back nearly as much (docs/quantising.md).
MOST_TOKENS = 8192
STEP_TOKENS = 512  # whose gradients are taken together, at the least one chunk
# By what share a value moves in a step, about, at a divergence of one nat. It goes with the divergence's
# root, as the errors that are to be made up for do: what is nearly right is not to be shaken.
_RATE = 0.005
_WARM_STEPS = 4
_LAST_RATE = 0.1  # of the rate, at the end
_MEMORY = (0.9, 0.98)  # of Adam, for gradients and for their squares
_AHEAD = 2048  # tokens of the source run at once


class Student:
    """A quantised file as it is being changed; weights that layers are run from.

    A gain or a row is multiplied by exp(v); a bias has v times its output's standard deviation added.

    Attributes:
        values: what is learnt, float32 [learnt]; zeros at first.
        units: what one means, float32 [learnt]: ones, for biases the standard deviation; 0 until it is known.
    """

    def __init__(self, file: GGUFCheckpoint, config: Qwen2Config) -> None:
        self.file = file
        self._places: dict[str, slice] = {}
        size = 0
        embeddings = {"embedding", "head"}
        for spec in config.tensors():
            tensor = file.file.tensors.get(spec.gguf_name)
            if tensor is None or spec.role in embeddings:
                continue
            if tensor.type == TensorType.F32 if len(tensor.shape) == 1 else has_scales(tensor.type):
                self._places[spec.hf_name] = slice(size, size + tensor.shape[0])
                size += tensor.shape[0]
        self.values = np.zeros(size, np.float32)
        self.units = np.ones(size, np.float32)
        for name, place in self._places.items():
            if name.endswith(".bias"):
                self.units[place] = 0.0

    def place(self, name: str) -> slice | None:
        """Where a tensor's values are, by its Hugging Face name; None for one that stays as it is."""
        return self._places.get(name)

    def names(self) -> list[str]:
        """Names of all tensors."""
        return self.file.names()

    def read(self, name: str, begin: int = 0, end: int | None = None) -> Array:
        """A tensor, or rows of it, as it is now."""
        values = self.file.read(name, begin, end)
        return values if name not in self._places else self._changed(name, values, begin, end)

    def release(self, name: str) -> None:
        """Says that a tensor will not be read again soon."""
        self.file.release(name)

    def write(self, output: Path) -> None:
        """Writes the file as it is now.

        Raises:
            ResourceError: the disk has too little space.
        """

        def changed(gguf: GGUFFile, name: str) -> npt.NDArray[np.generic] | None:
            own = self.file.hf_name(name)
            if own is None or own not in self._places:
                return None
            tensor = gguf.tensors[name]
            if len(tensor.shape) == 1:
                return self.read(own)
            factors = np.exp(self.values[self._places[own]])
            return scale_rows(gguf.raw(name), TensorType(tensor.type), factors)

        rewrite(self.file.file, output, changed=changed)

    def _changed(self, name: str, values: Array, begin: int, end: int | None) -> Array:
        place = self._places[name]
        learnt, units = self.values[place][begin:end], self.units[place][begin:end]
        if name.endswith(".bias"):
            return values + units * learnt
        factors = np.exp(learnt)
        values = np.require(values, requirements="W")  # a tensor that is read is an array of its own
        values *= factors[:, None] if values.ndim == 2 else factors
        return values


class Adam:
    """Adam, its rate rising at first and falling in the second half.

    Attributes:
        done: how many steps have been made.
        moments: running means of gradients and of their squares, float32 [2, learnt].
    """

    def __init__(self, size: int, steps: int) -> None:
        self.done = 0
        self._steps = steps
        self.moments = np.zeros((2, size), np.float32)

    def move(self, values: Array, gradient: Array, rate: float) -> None:
        """Makes a step; ``values`` become what they are after it."""
        self.done += 1
        means = []
        for place, (memory, new) in enumerate(zip(_MEMORY, (gradient, np.square(gradient)), strict=True)):
            self.moments[place] += (1.0 - memory) * (new - self.moments[place])
            means.append(self.moments[place] / (1.0 - memory**self.done))
        values -= np.float32(rate * self._share()) * means[0] / (np.sqrt(means[1]) + 1e-12)

    def _share(self) -> float:
        left = (self._steps - self.done) / max(1.0, self._steps / 2)
        fallen = _LAST_RATE + (1.0 - _LAST_RATE) * min(1.0, left)
        return min(1.0, self.done / _WARM_STEPS) * fallen


def distil(
    source: Checkpoint,
    config: Qwen2Config,
    file: Path,
    output: Path,
    ids: Ids,
    *,
    rounds: int = 1,
    seed: int = 0,
    kept: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Writes a quantised file anew, its gains, biases and row scales changed; no larger and no slower.

    A step takes about three passes over its tokens, as exactly as float32 does. Memory: the final hidden
    states of the text, one layer, the heads of both in float32, and a step's residual streams.

    Args:
        source: what the file was quantised from.
        config: its configuration.
        file: the quantised file.
        output: where the new one goes.
        ids: the text, int64 [chunks, tokens]; tokens of a chunk see each other. At most ``MOST_TOKENS``, at
            its beginning, are used.
        rounds: how often they are gone through.
        seed: of the order of chunks.
        kept: a folder for what an interrupted run goes on with, or None.
        progress: called after each step with steps done, steps in all, and the KL divergence of its tokens
            before it, in nats a token.

    Returns:
        That divergence, of each step.

    Raises:
        ResourceError: the disk has too little space.
    """
    ids = ids[: max(1, MOST_TOKENS // ids.shape[1])]
    student = Student(GGUFCheckpoint(file), config)
    together = max(1, STEP_TOKENS // ids.shape[1])
    order = list(_order(len(ids), together, rounds, seed))
    adam = Adam(len(student.values), len(order))
    targets = _targets(source, config, ids, None if kept is None else kept / _TARGETS)
    state = None if kept is None else kept / _STATE
    losses = _take_up(state, student, adam) if state is not None else []
    head = source.read(head_name(source, config))
    source.release(head_name(source, config))
    for chunks in order[len(losses) :]:
        gradient, loss = _gradient(student, config, ids[chunks], targets[chunks], head)
        losses.append(loss)
        adam.move(student.values, gradient, _RATE * min(1.0, losses[0]) ** 0.5)
        if state is not None:
            with atomic_file(state) as unfinished:
                np.savez(
                    unfinished,
                    values=student.values,
                    units=student.units,
                    moments=adam.moments,
                    losses=np.array(losses),
                )
        if progress:
            progress(len(losses), len(order), loss)
    student.write(output)
    return losses


def _gradient(
    student: Student, config: Qwen2Config, ids: Ids, targets: Matrix, head: Matrix
) -> tuple[Array, float]:
    """The gradient of the mean divergence from the source, float32 [learnt], and that divergence."""
    gradient = np.zeros_like(student.values)
    wanted = targets.reshape(ids.size, -1)
    divergence = 0.0

    def slope(rows: slice, logits: Matrix) -> Matrix:
        nonlocal divergence
        ours, theirs = _log_softmax(logits), _log_softmax(wanted[rows] @ head.T)
        chances = np.exp(theirs)
        divergence += float(np.vdot(chances, theirs - ours))
        return np.asarray((np.exp(ours) - chances) / np.float32(ids.size), np.float32)

    def note(name: str, inputs: Matrix, outputs: Matrix, slopes: Matrix) -> None:
        place = student.place(name)
        if place is not None:
            gradient[place] = np.einsum("ij,ij->j", outputs, slopes)
        bias = name.removesuffix("weight") + "bias"
        place = student.place(bias)
        if place is not None:
            if not student.units[place].any():
                student.units[place] = outputs.std(axis=0)
            gradient[place] = slopes.sum(axis=0) * student.units[place]

    def note_gain(name: str, slopes: Array) -> None:
        place = student.place(name)
        if place is not None:
            gradient[place] = slopes * student.read(name)

    run_back(student, config, ids, note, logit_slope=slope, note_gain=note_gain)
    return gradient, divergence / ids.size


def _targets(source: Checkpoint, config: Qwen2Config, ids: Ids, kept: Path | None) -> Matrix:
    """What the source's head gets to see, float32 [chunks, tokens, hidden]."""
    shape = (*ids.shape, config.hidden_size)
    if kept is not None and kept.exists():
        found: Matrix = np.load(kept, allow_pickle=False)
        if found.shape == shape and found.dtype == np.float32:
            return found
    hidden = embed(source, config, ids.ravel())
    for layer in range(config.layers):
        names = [name for name in source.names() if name.startswith(layer_prefix(layer))]
        matrices = {name: source.read(name) for name in names if len(source.shape(name)) == 2}

        def weigh(
            names: tuple[str, ...], _: Matrix, found: dict[str, Matrix] = matrices
        ) -> dict[str, Matrix]:
            return found

        rows = max(1, _AHEAD // ids.shape[1]) * ids.shape[1]
        for begin in range(0, len(hidden), rows):
            run_layer(hidden[begin : begin + rows], ids.shape[1], layer, source, config, weigh)
        for name in names:
            source.release(name)
    targets = rms_norm(hidden, source.read(LAST_NORM), config.rms_norm_eps).reshape(shape)
    if kept is not None:
        with atomic_file(kept) as unfinished:
            np.save(unfinished, targets)
    return targets


def _order(chunks: int, together: int, rounds: int, seed: int) -> Iterator[npt.NDArray[np.intp]]:
    """The chunks of each step; each chunk once a round."""
    random = np.random.default_rng(seed)
    for _ in range(rounds):
        shuffled = random.permutation(chunks)
        for begin in range(0, chunks, together):
            yield shuffled[begin : begin + together]


def _take_up(state: Path, student: Student, adam: Adam) -> list[float]:
    """Goes on where an interrupted run was; returns its divergences."""
    if not state.exists():
        return []
    try:
        with np.load(state, allow_pickle=False) as found:
            values, units, moments = found["values"], found["units"], found["moments"]
            losses: list[float] = found["losses"].tolist()
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return []
    if values.shape != student.values.shape or moments.shape != adam.moments.shape:
        return []
    student.values[:], student.units[:], adam.moments[:] = values, units, moments
    adam.done = len(losses)
    return losses


def _log_softmax(logits: Matrix) -> Matrix:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float32)
