"""Quantising a model's matrices with statistics of their inputs, layer by layer.

Each layer is run over the calibration tokens with its matrices as they have been quantised so far: what
comes later is fitted to the inputs that it will really get.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.checkpoints import Checkpoint
from bitqwen.errors import CheckpointError
from bitqwen.gguf import TensorType
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import Encoded, Recipe, Statistics, TensorPlan

from . import imatrix
from .moments import second_moments
from .resume import KeptLayers
from .transformer import Matrix, embed, mean_squares, run_layer

Array = npt.NDArray[np.float32]


class CalibratedEncoder:
    """Quantises layer after layer, each once, in their order.

    Attributes:
        importance: of each matrix's inputs, as they were met: mean squares, float32 [cols], by the
            matrix's Hugging Face name.
        lost_outputs: by the same names, the share of the outputs' energy that is lost, tokens counted as they
            were for the recipe, where it needs the second moments.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Qwen2Config,
        plans: Mapping[str, TensorPlan],
        ids: npt.NDArray[np.int64],
        recipe: Recipe,
        *,
        first_weights: Mapping[str, float] | None = None,
        resume: Path | None = None,
        save_importance: Path | None = None,
        threads: int = 0,
    ) -> None:
        """Prepares a run.

        Args:
            checkpoint: the source.
            config: its configuration.
            plans: how to store each matrix, by its Hugging Face name.
            ids: the calibration text, int64 [chunks, tokens]; tokens of a chunk see each other.
            recipe: how matrices are quantised.
            first_weights: how much a chunk's first token counts for a matrix, by its Hugging Face name, the
                others counting one; None for all the same.
            resume: a folder to keep finished layers in, or None.
            save_importance: an importance matrix to write at the end, or None.
            threads: 0 for one per core.
        """
        self._checkpoint = checkpoint
        self._config = config
        self._plans = plans
        self._ids = ids
        self._recipe = recipe
        self._threads = threads
        self._first_weights = first_weights
        self._save_importance = save_importance
        self._hidden: Matrix | None = None
        self._kept = None if resume is None else KeptLayers(resume, self._key())
        self.importance: dict[str, Array] = {}
        self.lost_outputs: dict[str, float] = {}

    def layer(self, layer: int) -> dict[str, Encoded]:
        """The matrices of a layer, by their Hugging Face names; layers are asked for in their order.

        Raises:
            CheckpointError: a weight is not finite, or beyond what its type holds.
        """
        if self._kept is not None:
            kept = self._kept.load(layer)
            if kept is not None:
                encoded, importance, lost = kept
                self.importance.update(importance)
                self.lost_outputs.update(lost)
                return encoded
            if self._hidden is None and layer > 0:
                self._hidden = self._kept.hidden()
        if self._hidden is None:
            self._hidden = embed(self._checkpoint, self._config, self._ids.ravel())
            for before in range(layer):  # kept, but not the residual stream after it
                self._run(before)
        return self._run(layer)

    def finish(self) -> None:
        """The output is complete: importances are saved, and what was kept for resuming may go."""
        if self._save_importance is not None:
            names = {spec.hf_name: spec.gguf_name for spec in self._config.tensors()}
            imatrix.save(
                self._save_importance,
                {names[name]: values for name, values in self.importance.items()},
                tokens=self._ids.size,
                chunk=self._ids.shape[1],
            )
        if self._kept is not None:
            self._kept.remove()

    def _run(self, layer: int) -> dict[str, Encoded]:
        assert self._hidden is not None
        encoded: dict[str, Encoded] = {}

        def weigh(names: tuple[str, ...], x: Matrix) -> dict[str, Matrix]:
            importance = mean_squares(x)
            if not np.isfinite(importance).all():
                raise CheckpointError(
                    f"the inputs of {names[0]} are not finite numbers on the calibration text",
                    hint="The checkpoint is damaged: fetch it again.",
                )
            shared = None
            if self._recipe.needs_moments and self._first_weights is None:
                shared = second_moments(x)
            weights = {}
            for name in names:
                self.importance[name] = importance
                matrix = self._checkpoint.read(name)
                moments = shared
                if self._recipe.needs_moments and self._first_weights is not None:
                    weight = self._first_weights[name]
                    moments = second_moments(x, chunk=self._ids.shape[1], first_weight=weight)
                if moments is None:
                    statistics = Statistics(importance)
                else:
                    statistics = Statistics(np.diag(moments).copy(), moments)
                encoded[name] = self._quantise(name, matrix, statistics)
                weights[name] = decoded(encoded[name], self._plans[name].tensor_type, matrix.shape)
                if moments is not None:
                    self.lost_outputs[name] = lost_share(matrix, weights[name], moments)
                self._checkpoint.release(name)
            return weights

        run_layer(self._hidden, self._ids.shape[1], layer, self._checkpoint, self._config, weigh)
        if self._kept is not None:
            self._kept.save(layer, encoded, self.importance, self.lost_outputs, self._hidden)
        return encoded

    def _quantise(self, name: str, matrix: Matrix, statistics: Statistics) -> Encoded:
        plan = self._plans[name]
        result = self._recipe.run(
            matrix, plan.tensor_type, method=plan.method, statistics=statistics, threads=self._threads
        )
        if not (np.isfinite(result.energy) and np.isfinite(result.error)):
            raise CheckpointError(
                f"tensor {name} holds values not finite, or beyond what {plan.tensor_type.name} can hold",
                hint="The checkpoint is damaged: fetch it again, or use a scheme of another type.",
            )
        return result

    def _key(self) -> str:
        origin = self._checkpoint.provenance
        facts = [
            self._recipe.text,
            self._ids.shape,
            hashlib.sha256(self._ids.tobytes()).hexdigest(),
            origin.source,
            origin.revision,
            {name: [plan.tensor_type.name, plan.method] for name, plan in self._plans.items()},
            dict(self._first_weights or {}),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def decoded(encoded: Encoded, tensor_type: TensorType, shape: tuple[int, ...]) -> Matrix:
    """What a quantised matrix stands for: float32, of that shape."""
    rows, cols = shape
    return _native.dequantize(int(tensor_type), encoded.data, rows, cols, codebook=encoded.codebook)


def lost_share(matrix: Matrix, other: Matrix, moments: Matrix) -> float:
    """The squared error of another matrix's outputs, as a share of this one's outputs' energy."""
    error = matrix - other
    energy = float(np.vdot(matrix, matrix @ moments))
    return float(np.vdot(error, error @ moments)) / energy if energy > 0 else 0.0
