"""What a conversion needs of a calibration: matrices quantised layer by layer, by their inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from bitqwen.checkpoints import Checkpoint
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import Encoded, TensorPlan

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class LayerEncoder(Protocol):
    """Quantises layer after layer.

    Attributes:
        lost_outputs: the share of a matrix's outputs' energy that is lost, by its Hugging Face name, where
            it is known.
    """

    lost_outputs: dict[str, float]

    def layer(self, layer: int) -> Mapping[str, Encoded]:
        """The matrices of a layer, by their Hugging Face names; layers are asked for in their order."""

    def finish(self) -> None:
        """The file is complete."""


class Calibration(Protocol):
    """How to get a :class:`LayerEncoder`; see :class:`bitqwen.calibrate.Calibration`."""

    @property
    def settings(self) -> dict[str, str]:
        """What the file's metadata says of it."""

    def start(
        self,
        checkpoint: Checkpoint,
        config: Qwen2Config,
        plans: Mapping[str, TensorPlan],
        *,
        output: Path,
        threads: int,
    ) -> LayerEncoder:
        """Begins a conversion of a checkpoint to ``output`` with ``plans`` for its layers' matrices."""


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
