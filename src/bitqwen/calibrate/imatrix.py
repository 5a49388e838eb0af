"""Importance of inputs in a file: llama.cpp's importance matrix ("imatrix"), in its GGUF form.

For each matrix the file holds the sum of its inputs' squares, column by column, and how many inputs there
were. Files of llama-imatrix can be used here, and ours by llama-quantize.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint
from bitqwen.convert.calibration import Quantizer
from bitqwen.errors import ModelFileError
from bitqwen.gguf import GGUFFile, GGUFWriter, TensorType
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import Encoded, Recipe, Rotation, Statistics, TensorPlan

from .moments import noise_weights

Array = npt.NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_TYPE = "imatrix"


def save(path: str | PathLike[str], importance: Mapping[str, Array], *, tokens: int, chunk: int) -> None:
    """Writes an importance matrix.

    Args:
        path: the file.
        importance: mean squares of each matrix's inputs, float32 [cols], by its GGUF name.
        tokens: how many inputs they are the means of.
        chunk: tokens of a chunk of the text.

    Raises:
        ModelFileError, ResourceError: it cannot be written.
    """
    with GGUFWriter(Path(path)) as writer:
        writer.add_metadata(
            {
                "general.type": _TYPE,
                "imatrix.datasets": ["bitqwen calibration"],
                "imatrix.chunk_count": tokens // chunk,
                "imatrix.chunk_size": chunk,
            }
        )
        names = sorted(importance)
        for name in names:
            writer.add_tensor(name + _SUMS, (1, len(importance[name])), TensorType.F32)
            writer.add_tensor(name + _COUNTS, (1, 1), TensorType.F32)
        writer.begin()
        for name in names:
            sums = np.ascontiguousarray(importance[name], np.float32) * np.float32(tokens)
            writer.write(name + _SUMS, sums.data)
            writer.write(name + _COUNTS, np.array([tokens], np.float32).data)
        writer.finish()


def load(path: str | PathLike[str]) -> dict[str, Array]:
    """The mean squares of each matrix's inputs, float32 [cols], by its GGUF name.

    Raises:
        ModelFileError: the file cannot be read, or is no importance matrix.
    """
    file = GGUFFile(path)
    names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
    if not names:
        raise ModelFileError(
            f"{path} is no importance matrix", hint="llama-imatrix writes one; in GGUF, which is its default."
        )
    found = {}
    for name in names:
        if name + _COUNTS not in file.tensors:
            raise ModelFileError(f"{path} has no count for {name}")
        count = file.read(name + _COUNTS).ravel()
        sums = file.read(name + _SUMS).ravel()
        if count.size != 1 or not count[0] > 0 or not np.isfinite(sums).all() or (sums < 0).any():
            raise ModelFileError(f"{path} has impossible values for {name}")
        found[name] = np.asarray(sums / count[0], np.float32)
    return found


class ImportanceEncoder:
    """Quantises matrices with importances from a file; for :func:`bitqwen.convert.convert`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Qwen2Config,
        plans: Mapping[str, TensorPlan],
        importance: Mapping[str, Array],
        rotation: Rotation,
        *,
        threads: int = 0,
    ) -> None:
        self._recipe = Recipe.parse("fit")
        self._rotation = rotation
        self._checkpoint = checkpoint
        self._plans = plans
        self._threads = threads
        self._importance: dict[str, Array] = {}
        self.lost_outputs: dict[str, float] = {}
        self.draft: Path | None = None
        for spec in config.tensors():
            if spec.hf_name not in plans:
                continue
            found = importance.get(spec.gguf_name)
            if found is None and spec.role != "matrix":
                continue  # llama-imatrix leaves the head out
            if found is None or found.size != spec.shape[1]:
                what = "none" if found is None else f"one of {found.size} columns"
                raise ModelFileError(
                    f"the importance matrix has {what} for {spec.gguf_name}, which has {spec.shape[1]}",
                    hint="It was made for another model.",
                )
            self._importance[spec.hf_name] = found

    def layer(self, layer: int) -> dict[str, Encoded]:
        """The matrices of a layer, by their Hugging Face names."""
        encoded = {}
        for name, plan in self._plans.items():
            if not name.startswith(f"model.layers.{layer}."):
                continue
            matrix = self._checkpoint.read(name)
            encode = self._recipe.quantizer(
                Statistics(self._importance[name]), self._rotation.of_matrix(name)
            )
            encoded[name] = encode(matrix, plan, self._threads)
            self._checkpoint.release(name)
        return encoded

    def head(self) -> Quantizer | None:
        """How rows of the output head are quantised, if the file says what its inputs are."""
        for name, importance in self._importance.items():
            if ".layers." not in name:
                statistics = Statistics(noise_weights(importance))
                return self._recipe.quantizer(statistics, self._rotation.of_matrix(name))
        return None

    def refine(self, output: Path, progress: Callable[[str], None]) -> None:
        """Nothing to do: there is no draft."""

    def finish(self) -> None:
        """Nothing is kept."""
