"""Second moments of a model's inputs, measured once on the source and kept for its many conversions.

A calibrated conversion runs the text through the layers as it quantises them, each time anew. Where one model
is converted to several sizes, most of that work is the same. Here the text goes once through the source as it
is, and a folder keeps what every recipe needs: 350 MB a layer for a model of 1.5 billion weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint
from bitqwen.errors import ModelFileError
from bitqwen.files import atomic_file
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import Encoded, Recipe, Statistics, TensorPlan

from . import imatrix
from .moments import Moments
from .transformer import Matrix, embed, mean_squares, run_layer

Array = npt.NDArray[np.float32]

_NOTE, _HIDDEN = "moments.json", "hidden.npy"


class KeptMoments:
    """A folder with the moments of each input of a model's layers.

    Attributes:
        folder: where they are.
        tokens: of the text.
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
        except (OSError, ValueError, KeyError) as error:
            raise ModelFileError(
                f"{folder} holds no moments of a model's inputs",
                hint="bitqwen.calibrate.kept_moments.measure writes them.",
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

    def save_importance(self, path: Path, config: Qwen2Config) -> None:
        """Writes an imatrix, which llama-quantize reads."""
        names = {spec.hf_name: spec.gguf_name for spec in config.tensors()}
        found = {names[name]: values for name, values in self.importance().items()}
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
            kept = names[0].removesuffix(".weight")
            found = Moments.of(x, ids.shape[1])
            with atomic_file(folder / f"{kept}.npy") as file:
                np.save(file, found.rest)
            with atomic_file(folder / f"{kept}.npz") as file:
                np.savez(file, importance=mean_squares(x), first=found.first, others=found.others)
            inputs.update(dict.fromkeys(names, kept))
            return {name: checkpoint.read(name) for name in names}

        run_layer(hidden, ids.shape[1], layer, checkpoint, config, weigh)
        with atomic_file(folder / _HIDDEN) as file:
            np.save(file, hidden)
        _write(begun, {**state, "layers": layer + 1, "inputs": inputs})
    note = {"tokens": ids.size, "chunk": ids.shape[1], "inputs": inputs}
    _write(folder / _NOTE, note)
    (folder / _HIDDEN).unlink(missing_ok=True)
    begun.unlink(missing_ok=True)
    return KeptMoments(folder)


def _write(path: Path, note: Mapping[str, object]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(note, indent=1).encode() + b"\n")


class MomentsEncoder:
    """Quantises matrices with kept moments; for :func:`bitqwen.convert.convert`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plans: Mapping[str, TensorPlan],
        kept: KeptMoments,
        recipe: Recipe,
        *,
        first_weights: Mapping[str, float] | None = None,
        threads: int = 0,
    ) -> None:
        self._checkpoint = checkpoint
        self._plans = plans
        self._kept = kept
        self._recipe = recipe
        self._first_weights = first_weights or {}
        self._threads = threads
        self._importance = kept.importance()
        self.lost_outputs: dict[str, float] = {}

    @property
    def settings(self) -> dict[str, str]:
        """What the file's metadata says of it."""
        return {
            "calibration": "moments of the source",
            "calibration_tokens": str(self._kept.tokens),
            "recipe": self._recipe.text,
        }

    def layer(self, layer: int) -> dict[str, Encoded]:
        """The matrices of a layer, by their Hugging Face names."""
        prefix = f"model.layers.{layer}."
        return {
            name: self.encode(name, plan) for name, plan in self._plans.items() if name.startswith(prefix)
        }

    def encode(self, name: str, plan: TensorPlan) -> Encoded:
        """One matrix."""
        matrix = self._checkpoint.read(name)
        if self._recipe.needs_moments:
            moments = self._kept.moments(name).weighed(self._first_weights.get(name, 1.0))
            statistics = Statistics(np.diag(moments).copy(), moments)
        else:
            statistics = Statistics(self._importance[name])
        encoded = self._recipe.run(
            matrix, plan.tensor_type, method=plan.method, statistics=statistics, threads=self._threads
        )
        self._checkpoint.release(name)
        return encoded

    def finish(self) -> None:
        """The moments stay."""
