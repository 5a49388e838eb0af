"""How large a conversion will be, from the configuration alone."""

from __future__ import annotations

from bitqwen.gguf import tensor_bytes
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import schemes


def converted_bytes(config: Qwen2Config, scheme: str) -> int:
    """Bytes of all tensors of a model in a scheme; the file has its vocabulary besides, some megabytes.

    Raises:
        UsageError: no such scheme, or it has no type for this model's rows.
    """
    chosen = schemes.get(scheme)
    return sum(
        tensor_bytes(chosen.plan(spec.role, spec.shape).tensor_type, spec.shape)
        for spec in config.tensors()
        if not spec.optional
    )
