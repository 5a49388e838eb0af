"""Architectures by name: ``model_type`` in config.json, ``general.architecture`` in GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitqwen.errors import UnsupportedModelError

from .qwen2 import Qwen2Config

ARCHITECTURES: dict[str, type[Qwen2Config]] = {"qwen2": Qwen2Config}


def config_from_hf(config: Mapping[str, Any], *, source: str = "config.json") -> Qwen2Config:
    """The typed configuration of a Hugging Face ``config.json``.

    Raises:
        UnsupportedModelError: another architecture, or a feature of this one that bitqwen does not run.
        CheckpointError: a value is missing or impossible.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{source} is a model of type {model_type!r}; supported: {', '.join(ARCHITECTURES)} "
            "(Qwen2, Qwen2.5 and their Coder and Math models)"
        )
    return ARCHITECTURES[model_type].from_hf(config, source=source)
