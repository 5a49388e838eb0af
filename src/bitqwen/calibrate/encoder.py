"""Quantising a model's matrices with statistics of their inputs, layer by layer.

Each layer is run over the calibration tokens with its matrices as they have been quantised so far: what
comes later is fitted to the inputs that it will really get.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.checkpoints import Checkpoint
from bitqwen.convert.calibration import Quantizer
from bitqwen.errors import CheckpointError
from bitqwen.gguf import TensorType
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import Encoded, Recipe, Rotation, Statistics, TensorPlan

from . import distillation, imatrix, propagation
from .backward import LAST_NORM, head_name
from .moments import Moments, noise_weights, second_moments
from .propagation import Aim
from .resume import KeptLayers
from .transformer import Matrix, embed, mean_squares, rms_norm, run_layer

Array = npt.NDArray[np.float32]

_ROWS_ASKED = 256


class CalibratedEncoder:
    """Quantises layer after layer, each once, in their order.

    Attributes:
        importance: of each matrix's inputs, as they were met: mean squares, float32 [cols], by the
            matrix's Hugging Face name.
        lost_outputs: by the same names, the share of the outputs' energy that is lost, tokens counted as they
            were for the recipe, where it needs the second moments.
        draft: where the file is written before it is distilled; None for recipes that end with matrices.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Qwen2Config,
        plans: Mapping[str, TensorPlan],
        ids: npt.NDArray[np.int64],
        recipe: Recipe,
        *,
        rotation: Rotation | None = None,
        first_weights: Mapping[str, float] | None = None,
        draft: Path | None = None,
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
            rotation: of those that are stored in rotated columns; None for none.
            first_weights: how much a chunk's first token counts for a matrix, by its Hugging Face name, the
                others counting one; None for all the same.
            draft: where the file may stand before it is distilled, if the recipe says so.
            resume: a folder to keep finished layers in, or None.
            save_importance: an importance matrix to write at the end, or None.
            threads: 0 for one per core.
        """
        self._checkpoint = checkpoint
        self._config = config
        self._plans = plans
        self._ids = ids
        self._recipe = recipe
        self._rotation = rotation or Rotation.none()
        self._threads = threads
        self._first_weights = first_weights
        self._save_importance = save_importance
        self.draft = draft if recipe.distil else None
        self._hidden: Matrix | None = None
        self._source_hidden: Matrix | None = None
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
                self._take_up()
        self._run_to(layer)
        return self._run(layer)

    def head(self) -> Quantizer:
        """How rows of the output head are quantised, by what it gets to see; asked for after all layers."""
        if self._hidden is None and self._kept is not None:
            self._take_up()
        hidden = self._run_to(self._config.layers)
        x = rms_norm(hidden, self._checkpoint.read(LAST_NORM), self._config.rms_norm_eps)
        name = head_name(self._checkpoint, self._config)
        importance = self.importance[name] = mean_squares(x)
        if self._recipe.needs_moments:
            moments = second_moments(x)
            statistics = Statistics(noise_weights(np.diag(moments)), moments)
            return self._recipe.quantizer(statistics, self._rotation.of_matrix(name))
        return self._recipe.quantizer(Statistics(noise_weights(importance)))

    def refine(self, output: Path, progress: Callable[[str], None]) -> None:
        """Distils the complete draft."""
        assert self.draft is not None

        def tell(done: int, steps: int, divergence: float) -> None:
            progress(f"distillation {done}/{steps}, KL divergence {divergence:.3f}")

        self._hidden = self._source_hidden = None
        distillation.distil(
            self._checkpoint,
            self._config,
            self.draft,
            output,
            self._ids,
            rounds=self._recipe.distil,
            kept=None if self._kept is None else self._kept.folder,
            progress=tell,
        )

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

    def _run_to(self, layer: int) -> Matrix:
        """The residual stream before a layer, from the first one on where it is not there."""
        if self._hidden is None:
            self._hidden = embed(self._checkpoint, self._config, self._ids.ravel())
            self._source_hidden = self._hidden.copy() if self._recipe.propagate else None
            for before in range(layer):
                self._run(before)
        return self._hidden

    def _take_up(self) -> None:
        """Goes on after the last layer that was kept."""
        assert self._kept is not None
        streams = self._kept.streams()
        if streams is not None:
            self._hidden = streams[0]
            self._source_hidden = streams[1] if self._recipe.propagate else None

    def _run(self, layer: int) -> dict[str, Encoded]:
        assert self._hidden is not None
        encoded: dict[str, Encoded] = {}
        chunk, hidden, source_hidden = self._ids.shape[1], self._hidden, self._source_hidden
        aims: dict[str, Aim] = {}
        if source_hidden is not None:
            aims = propagation.aims(source_hidden, chunk, layer, self._checkpoint, self._config)

        def weigh(names: tuple[str, ...], x: Matrix) -> dict[str, Matrix]:
            importance = mean_squares(x)
            if not np.isfinite(importance).all():
                raise CheckpointError(
                    f"the inputs of {names[0]} are not finite numbers on the calibration text",
                    hint="The checkpoint is damaged: fetch it again.",
                )
            sums = Moments.of(x, chunk) if self._recipe.needs_moments else None
            weights = {}
            for name in names:
                self.importance[name] = importance
                matrix = self._checkpoint.read(name)
                moments, statistics = None, Statistics(importance)
                if sums is not None:
                    weight = self._first_weights[name] if self._first_weights is not None else 1.0
                    moments = sums.weighed(weight)
                    statistics = Statistics(np.diag(moments).copy(), moments)
                    if aims:
                        matrix, _ = propagation.compensated(
                            matrix,
                            aims.pop(name),
                            x,
                            hidden,
                            moments,
                            chunk=chunk,
                            first_weight=weight,
                            most=self._recipe.propagate,
                        )
                encoded[name] = self._quantise(name, matrix, statistics)
                weights[name] = decoded(
                    encoded[name], self._plans[name].tensor_type, matrix.shape, self._rotation.of_matrix(name)
                )
                if moments is not None:
                    self.lost_outputs[name] = lost_share(matrix, weights[name], moments)
                self._checkpoint.release(name)
            return weights

        run_layer(hidden, chunk, layer, self._checkpoint, self._config, weigh)
        if self._kept is not None:
            streams = [hidden] if source_hidden is None else [hidden, source_hidden]
            self._kept.save(layer, encoded, self.importance, self.lost_outputs, np.stack(streams))
        return encoded

    def _quantise(self, name: str, matrix: Matrix, statistics: Statistics) -> Encoded:
        plan = self._plans[name]
        result = self._recipe.run(
            matrix,
            plan.tensor_type,
            method=plan.method,
            statistics=statistics,
            rotation=self._rotation.of_matrix(name),
            threads=self._threads,
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
            "streams",  # how the residual stream is kept: layers kept otherwise are not taken up
            self._recipe.text,
            self._ids.shape,
            hashlib.sha256(self._ids.tobytes()).hexdigest(),
            origin.source,
            origin.revision,
            {name: [plan.tensor_type.name, plan.method] for name, plan in self._plans.items()},
            dict(self._first_weights or {}),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def decoded(
    encoded: Encoded, tensor_type: TensorType, shape: tuple[int, ...], rotation: Rotation | None = None
) -> Matrix:
    """What a quantised matrix stands for, in its own columns if it was rotated: float32, of that shape."""
    rows, cols = shape
    found = _native.dequantize(int(tensor_type), encoded.data, rows, cols, codebook=encoded.codebook)
    return found if rotation is None else rotation.back(found)


def lost_share(matrix: Matrix, other: Matrix, moments: Matrix) -> float:
    """The squared error of another matrix's outputs, as a share of this one's outputs' energy.

    Some hundred rows, evenly taken, tell it.
    """
    some = slice(None, None, max(1, len(matrix) // _ROWS_ASKED))
    matrix, error = matrix[some], matrix[some] - other[some]
    energy = float(np.vdot(matrix, matrix @ moments))
    return float(np.vdot(error, error @ moments)) / energy if energy > 0 else 0.0
