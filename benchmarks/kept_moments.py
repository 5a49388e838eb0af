"""Second moments of a model's inputs, measured once on the source and kept for its many conversions.

A calibrated conversion runs the text through the layers as it quantises them, each time anew. Where one model
is converted to several sizes, most of that work is the same. Here the text goes once through the source as it
is, and a folder keeps what every recipe needs: 350 MB a layer for a model of 1.5 billion weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen.calibrate import imatrix
from bitqwen.calibrate.backward import head_name
from bitqwen.calibrate.moments import Moments, noise_weights
from bitqwen.calibrate.transformer import Matrix, embed, mean_squares, rms_norm, run_layer
from bitqwen.checkpoints import Checkpoint
from bitqwen.convert.calibration import Quantizer
from bitqwen.errors import ModelFileError, UsageError
from bitqwen.files import atomic_file
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import Encoded, Recipe, Rotation, Statistics, TensorPlan

Array = npt.NDArray[np.float32]

_NOTE, _HIDDEN = "moments.json", "hidden.npy"


class KeptMoments:
    """A folder with the moments of each input of a model's layers.

    Attributes:
        folder: where they are.
        tokens: of the text.
        head: the matrix that logits come from, by its Hugging Face name.
        chunk: tokens that saw each other.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a complete folder.

        Raises:
            ModelFileError: it is none.
        """
        self.folder = folder
        try:
            note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
            self.tokens: int = note["tokens"]
            self.chunk: int = note["chunk"]
            self._inputs: dict[str, str] = note["inputs"]
            self.head: str = note["head"]
        except (OSError, ValueError, KeyError) as error:
            raise ModelFileError(
                f"{folder} holds no moments of a model's inputs",
                hint="kept_moments.measure writes them.",
            ) from error

    def importance(self) -> dict[str, Array]:
        """Mean squares of each matrix's inputs, float32 [cols], by its Hugging Face name."""
        found = {}
        for name, kept in self._inputs.items():
            with np.load(self._small(kept), allow_pickle=False) as arrays:
                found[name] = arrays["importance"]
        return found

    def moments(self, name: str) -> Moments:
        """The moments of a matrix's inputs."""
        kept = self._inputs[name]
        with np.load(self._small(kept), allow_pickle=False) as arrays:
            first, others = arrays["first"], int(arrays["others"])
        return Moments(np.load(self.folder / f"{kept}.npy", allow_pickle=False), others, first)

    @staticmethod
    def together(kept: Sequence[KeptMoments], name: str) -> Moments:
        """The moments of a matrix's inputs on several texts."""
        first, *others = [each.moments(name) for each in kept]
        for each in others:
            first.rest.__iadd__(each.rest)
        texts = [first, *others]
        return Moments(
            first.rest, sum(each.others for each in texts), np.concatenate([each.first for each in texts])
        )

    def save_importance(self, path: Path, config: Qwen2Config) -> None:
        """Writes an imatrix, which llama-quantize reads; without the head, as llama-imatrix does."""
        names = {spec.hf_name: spec.gguf_name for spec in config.tensors() if spec.role == "matrix"}
        found = {names[name]: values for name, values in self.importance().items() if name in names}
        imatrix.save(path, found, tokens=self.tokens, chunk=self.chunk)

    def _small(self, kept: str) -> Path:
        return self.folder / f"{kept}.npz"


def measure(
    checkpoint: Checkpoint,
    config: Qwen2Config,
    ids: npt.NDArray[np.int64],
    folder: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> KeptMoments:
    """Runs a text through the source, layer after layer, and keeps the moments of all inputs.

    A run that was interrupted goes on where it was.

    Args:
        checkpoint: the model.
        config: its configuration.
        ids: the text, int64 [chunks, tokens].
        folder: where to keep them.
        progress: called with layers done and layers in all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "begun.json"
    state = {"key": hashlib.sha256(ids.tobytes()).hexdigest(), "shape": list(ids.shape), "layers": 0}
    inputs: dict[str, str] = {}
    if begun.exists():
        found = json.loads(begun.read_text(encoding="utf-8"))
        if found["key"] == state["key"] and found["shape"] == state["shape"]:
            state["layers"], inputs = found["layers"], found["inputs"]
    done = int(str(state["layers"]))
    hidden: Matrix = (
        np.load(folder / _HIDDEN, allow_pickle=False) if done else embed(checkpoint, config, ids.ravel())
    )
    for layer in range(done, config.layers):
        if progress:
            progress(layer, config.layers)

        def weigh(names: tuple[str, ...], x: Matrix) -> dict[str, Matrix]:
            inputs.update(dict.fromkeys(names, _keep(folder, names[0], x, ids.shape[1])))
            return {name: checkpoint.read(name) for name in names}

        run_layer(hidden, ids.shape[1], layer, checkpoint, config, weigh)
        with atomic_file(folder / _HIDDEN) as file:
            np.save(file, hidden)
        _write(begun, {**state, "layers": layer + 1, "inputs": inputs})
    head = head_name(checkpoint, config)
    gain = checkpoint.read("model.norm.weight")
    inputs[head] = _keep(folder, head, rms_norm(hidden, gain, config.rms_norm_eps), ids.shape[1])
    note = {"tokens": ids.size, "chunk": ids.shape[1], "head": head, "inputs": inputs}
    _write(folder / _NOTE, note)
    (folder / _HIDDEN).unlink(missing_ok=True)
    begun.unlink(missing_ok=True)
    return KeptMoments(folder)


def _keep(folder: Path, name: str, x: Matrix, chunk: int) -> str:
    kept = name.removesuffix(".weight")
    found = Moments.of(x, chunk)
    with atomic_file(folder / f"{kept}.npy") as file:
        np.save(file, found.rest)
    with atomic_file(folder / f"{kept}.npz") as file:
        np.savez(file, importance=mean_squares(x), first=found.first, others=found.others)
    return kept


def _write(path: Path, note: Mapping[str, object]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(note, indent=1).encode() + b"\n")


class MomentsEncoder:
    """Quantises matrices with kept moments.

    Attributes:
        kept: the moments.

    Args:
        checkpoint: the source.
        kept: moments of its inputs.
        recipe: how matrices are quantised.
        first_weights: how much a chunk's first token counts for a matrix, by its Hugging Face name.
    """

    def __init__(
        self, checkpoint: Checkpoint, kept: KeptMoments, recipe: Recipe, first_weights: Mapping[str, float]
    ) -> None:
        if recipe.propagate:
            raise UsageError(
                f"recipe {recipe.text!r}: kept moments are the source's, and tell of no earlier errors",
                hint="Leave propagate out, or convert with bitqwen convert --calibration.",
            )
        self._checkpoint, self.kept, self._recipe = checkpoint, kept, recipe
        self._first_weights = first_weights
        self._importance = kept.importance()

    @property
    def settings(self) -> dict[str, str]:
        """What the file's metadata says of it."""
        return {
            "calibration": "moments of the source",
            "calibration_tokens": str(self.kept.tokens),
            "recipe": self._recipe.text,
        }

    def encode(self, name: str, plan: TensorPlan, rotation: Rotation | None = None) -> Encoded:
        """One matrix of a layer, rotated if the file says so."""
        if self._recipe.needs_moments:
            moments = self.kept.moments(name).weighed(self._first_weights[name])
            statistics = Statistics(np.diag(moments).copy(), moments)
        else:
            statistics = Statistics(self._importance[name])
        run = self._recipe.quantizer(statistics, rotation)
        encoded = run(self._checkpoint.read(name), plan, 0)
        self._checkpoint.release(name)
        return encoded

    def head(self, rotation: Rotation | None = None) -> Quantizer:
        """How rows of the output head are quantised."""
        name = self.kept.head
        if not self._recipe.needs_moments:
            return self._recipe.quantizer(Statistics(noise_weights(self._importance[name])))
        moments = self.kept.moments(name).weighed(1.0)
        return self._recipe.quantizer(Statistics(noise_weights(np.diag(moments)), moments), rotation)
