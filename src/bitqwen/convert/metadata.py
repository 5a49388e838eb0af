"""A converted file's metadata: complete, so that any GGUF program runs the file."""

from __future__ import annotations

import json
from typing import Any

from bitqwen.checkpoints import Checkpoint
from bitqwen.gguf import keys
from bitqwen.models.qwen2 import Qwen2Config


def file_metadata(
    checkpoint: Checkpoint, config: Qwen2Config, *, scheme: str, file_type: int, settings: dict[str, str]
) -> dict[str, Any]:
    """Keys and values in the file's order; reads all of the source once, for its digest.

    Args:
        checkpoint: the source.
        config: its configuration.
        scheme: the scheme's name.
        file_type: ``general.file_type``.
        settings: what the caller chose beside the scheme.

    Raises:
        ModelFileError: the tokenizer is missing, damaged, or not this model's; the source cannot be read.
    """
    from bitqwen import __version__

    origin = checkpoint.provenance
    optional = {
        keys.CHAT_TEMPLATE: checkpoint.chat_template,
        keys.BITQWEN_REVISION: origin.revision,
        keys.BITQWEN_SETTINGS: json.dumps(settings, sort_keys=True) if settings else None,
    }
    return {
        keys.ARCHITECTURE: config.architecture,
        "general.type": "model",
        keys.NAME: checkpoint.name,
        keys.FILE_TYPE: file_type,
        keys.QUANTIZATION_VERSION: 2,
        **_sampling(checkpoint.generation_config),
        **config.to_gguf_metadata(),
        **checkpoint.tokenizer().padded(config.vocab_size).to_gguf_metadata(),
        **{key: value for key, value in optional.items() if value is not None},
        keys.BITQWEN_VERSION: __version__,
        keys.BITQWEN_SCHEME: scheme,
        keys.BITQWEN_SOURCE: origin.source,
        keys.BITQWEN_SOURCE_SHA256: checkpoint.sha256(),
    }


def _sampling(generation: dict[str, Any]) -> dict[str, Any]:
    """The settings that the model's makers recommend, unless they recommend none (``do_sample`` false)."""
    if generation.get("do_sample") is False:
        return {}
    values = {key: generation.get(name) for name, key in keys.SAMPLING.items()}
    return {
        key: value if key == keys.SAMPLING["top_k"] else float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    }
