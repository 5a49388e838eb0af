"""What a conversion needs of calibration: matrices quantised by their inputs, the head after all layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import Encoded, Rotation, TensorPlan

# (rows of a matrix, float32 [rows, cols], how to store them, threads or 0) -> encoded.
Quantizer = Callable[[npt.NDArray[np.float32], TensorPlan, int], Encoded]

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class LayerEncoder(Protocol):
    """Quantises layer after layer.

    Attributes:
        lost_outputs: the share of a matrix's outputs' energy that is lost, by its Hugging Face name, where
            it is known.
        draft: where the file is written first, if it is then to be refined as a whole.
    """

    lost_outputs: dict[str, float]
    draft: Path | None

    def layer(self, layer: int) -> Mapping[str, Encoded]:
        """The matrices of a layer, by their Hugging Face names; layers are asked for in their order."""

    def head(self) -> Quantizer | None:
        """How rows of the output head are quantised, if it says that; asked for after the last layer."""

    def refine(self, output: Path, progress: Callable[[str], None]) -> None:
        """Makes the file of its complete draft; tells how far it is."""

    def finish(self) -> None:
        """The file is complete."""


class Calibration(Protocol):
    """How to get a :class:`LayerEncoder`; see :class:`bitqwen.calibrate.Calibration`."""

    @property
    def settings(self) -> dict[str, str]:
        """What the file's metadata says of it."""

    @property
    def rotates(self) -> bool:
        """Whether matrices are rotated where that helps."""

    def start(
        self,
        checkpoint: Checkpoint,
        config: Qwen2Config,
        plans: Mapping[str, TensorPlan],
        rotation: Rotation,
        *,
        output: Path,
        threads: int,
    ) -> LayerEncoder:
        """Begins a conversion to ``output`` with ``plans`` for the matrices of the layers and the head."""


class CalibratedMatrices:
    """The matrices of one layer at a time, each given once."""

    def __init__(self, encoder: LayerEncoder | None) -> None:
        self._encoder = encoder
        self._layer = -1
        self._ready: dict[str, Encoded] = {}

    def take(self, name: str) -> tuple[Encoded, float | None] | None:
        """A matrix and its lost share of outputs; None for tensors that calibration leaves alone."""
        found = _LAYER.match(name)
        if self._encoder is None or found is None:
            return None
        if int(found[1]) != self._layer:
            self._layer = int(found[1])
            self._ready = dict(self._encoder.layer(self._layer))
        encoded = self._ready.pop(name, None)
        return None if encoded is None else (encoded, self._encoder.lost_outputs.get(name))
