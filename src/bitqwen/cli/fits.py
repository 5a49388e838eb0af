"""Which schemes let a model run in a given memory, from its configuration alone."""

from __future__ import annotations

import re
from typing import NamedTuple

from bitqwen import quant
from bitqwen.convert.sizes import converted_bytes
from bitqwen.engine import memory
from bitqwen.engine.cache import KvType
from bitqwen.engine.model import DEFAULT_CONTEXT
from bitqwen.errors import UsageError
from bitqwen.models.qwen2 import Qwen2Config

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
# Schemes for models that were trained for them: others turn to gibberish.
_FOR_TRAINED = frozenset({"ternary", "bitnet"})


class Fit(NamedTuple):
    """One scheme: bytes of the file and of memory at the context, and whether that fits."""

    scheme: str
    file: int
    memory: int
    fits: bool
    needs_training: bool


def size_in_bytes(text: str) -> int:
    """``8GB`` -> 8,000,000,000; ``8GiB`` -> 8,589,934,592.

    Raises:
        UsageError: it is no size.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([kmg]i?|)b?", text.strip().lower())
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no size.", hint="For example 8GB, 1.5GiB or 700MB.")
    return int(float(match[1]) * _UNITS[match[2]])


def fits(config: Qwen2Config, limit: int, *, context: int | None = None, kv: KvType = "f16") -> list[Fit]:
    """Each scheme that the model can be stored in, with its file and its memory, widest first."""
    positions = min(context or DEFAULT_CONTEXT, config.max_context)
    rows = []
    for name in quant.names():
        try:
            weights = converted_bytes(config, name)
        except UsageError:  # no type for this model's rows
            continue
        need = memory.estimate(config, weights=weights, context=positions, kv=kv)
        total = sum(need.values())
        rows.append(Fit(name, weights, total, total <= limit, name in _FOR_TRAINED))
    return sorted(rows, key=lambda row: -row.file)
