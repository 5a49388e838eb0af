"""Architectures by name: ``model_type`` in config.json, ``general.architecture`` in GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitqwen.errors import UnsupportedModelError

from .qwen2 import Qwen2Config

ARCHITECTURES: dict[str, type[Qwen2Config]] = {"qwen2": Qwen2Config}


def _architecture(name: Any, source: str) -> type[Qwen2Config]:
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{source}: a model of architecture {name!r}; supported: {', '.join(ARCHITECTURES)}",
            hint="qwen2 is the architecture of Qwen2, Qwen2.5 and their Coder and Math models.",
        )
    return ARCHITECTURES[name]


def config_from_hf(config: Mapping[str, Any], *, source: str = "config.json") -> Qwen2Config:
    """The typed configuration of a Hugging Face ``config.json``.

    Raises:
        UnsupportedModelError: another architecture, or a feature of this one that bitqwen does not run.
        CheckpointError: a value is missing or impossible.
    """
    return _architecture(config.get("model_type"), source).from_hf(config, source=source)


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, Any], *, source: str = "the GGUF metadata"
) -> Qwen2Config:
    """The typed configuration of a GGUF file.

    Raises:
        UnsupportedModelError: another architecture, or a feature of this one that bitqwen does not run.
        CheckpointError: a value is missing or impossible.
    """
    architecture = _architecture(metadata.get("general.architecture"), source)
    return architecture.from_gguf(metadata, tensors, source=source)
