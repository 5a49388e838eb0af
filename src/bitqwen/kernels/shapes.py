"""The shapes that a model's matrices have: what kernels are generated for."""

from __future__ import annotations

from dataclasses import dataclass

from bitqwen.models.qwen2 import Qwen2Config


@dataclass(frozen=True)
class MatrixShape:
    """One shape, ``rows`` x ``cols`` (M x K), and which of a layer's matrices have it."""

    rows: int
    cols: int
    names: tuple[str, ...]


def matrix_shapes(config: Qwen2Config) -> list[MatrixShape]:
    """The distinct shapes of a layer's matrices, in the order of a layer."""
    found: dict[tuple[int, ...], list[str]] = {}
    for spec in config.tensors():
        if spec.role == "matrix" and spec.gguf_name.startswith("blk.0."):
            found.setdefault(spec.shape, []).append(spec.gguf_name.split(".")[2])
    return [MatrixShape(rows, cols, tuple(names)) for (rows, cols), names in found.items()]
