"""How much memory a model will need, told before it is loaded."""

from __future__ import annotations

import bisect
import os
from typing import TYPE_CHECKING

from bitqwen import _native

from .cache import KvType

if TYPE_CHECKING:
    from bitqwen.models.qwen2 import Qwen2Config


def estimate(
    config: Qwen2Config,
    *,
    weights: int,
    context: int,
    kv: KvType = "f16",
    threads: int | None = None,
    batch: int = 512,
    screened: bool = False,
) -> dict[str, int]:
    """Bytes that :attr:`Model.memory` will report: ``weights``, ``cache``, ``scratch``.

    Args:
        config: the model's hyperparameters.
        weights: bytes of its tensors in the file.
        context: positions of the one sequence that the KV cache has room for.
        kv: number format of the KV cache, see :mod:`bitqwen.engine.cache`.
        threads: threads that will compute; default: one per core.
        batch: tokens computed at once while reading a prompt.
        screened: with a screened head.
    """
    return _native.estimate_memory(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        weights=weights,
        threads=threads or os.cpu_count() or 1,
        context=context,
        kv=kv,
        batch=batch,
        screened=screened,
    )


def largest_context(
    config: Qwen2Config, *, weights: int, room: int, kv: KvType = "f16", threads: int | None = None
) -> int:
    """The most positions that run in ``room`` bytes, as :func:`estimate` has it; 0 if not even one.

    Never more than the model's own context.
    """

    def too_large(context: int) -> bool:
        need = estimate(config, weights=weights, context=context, kv=kv, threads=threads)
        return sum(need.values()) > room

    return bisect.bisect_left(range(1, config.max_context + 1), True, key=too_large)


def available() -> int:
    """Bytes that this process could take without swapping."""
    return _native.available_memory()
