"""Whether a model was trained for three levels: what schemes that round to them ask first."""

from __future__ import annotations

from typing import Literal

import numpy as np

from bitqwen.checkpoints import Checkpoint
from bitqwen.models.qwen2 import Qwen2Config

_MATRICES = 12  # looked at, spread over the model
_ROWS = 16  # of each
_GROUP = 32  # the smallest group of weights that has a scale of its own

Levels = Literal["matrix", "group"]


def ternary_levels(checkpoint: Checkpoint, config: Qwen2Config) -> Levels | None:
    """What has one scale in a model of three levels: "matrix" or "group"; ``None`` for any other model.

    BitNet's checkpoints hold ordinary values, to be rounded when they are used, and say so in their
    configuration. Others hold the rounded values themselves, -s, 0 and s.
    """
    quantisation = checkpoint.config.get("quantization_config")
    if isinstance(quantisation, dict) and quantisation.get("quant_method") == "bitnet":
        return "matrix"
    matrices = [spec for spec in config.tensors() if spec.role == "matrix"]
    found: Levels = "matrix"
    for spec in matrices[:: max(1, len(matrices) // _MATRICES)]:
        rows = checkpoint.read(spec.hf_name, 0, min(_ROWS, spec.shape[0]))
        if _one_magnitude(rows.reshape(1, -1)):
            continue
        if spec.shape[1] % _GROUP or not _one_magnitude(rows.reshape(-1, _GROUP)):
            return None
        found = "group"
    return found


def _one_magnitude(rows: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> bool:
    """Whether all values of a row that are not zero have the same magnitude, in every row."""
    magnitudes = np.abs(rows)
    largest = magnitudes.max(axis=1, keepdims=True)
    return bool(np.all((magnitudes == 0) | (magnitudes == largest)))
