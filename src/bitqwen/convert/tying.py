"""Whether embedding and output head are one matrix, which a file then stores once."""

from __future__ import annotations

import numpy as np

from bitqwen.checkpoints import Checkpoint
from bitqwen.gguf import TensorType, type_info
from bitqwen.models.qwen2 import Qwen2Config

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

_QUANTISED_BITS = {t.name: type_info(t).bits_per_weight for t in TensorType if type_info(t).block_size > 1}
_PIECE_VALUES = 8 << 20


def shared_embedding(checkpoint: Checkpoint, config: Qwen2Config) -> str | None:
    """The tensor to write once for embedding and head, if the source stores both and they are one matrix.

    A tied model may store its head all the same; a model that is said to be untied may store one matrix
    twice, and a quantised file in two types: then the wider one is the better copy. Matrices that were not
    quantised must be equal to the last bit.
    """
    if HEAD not in checkpoint.names():
        return None
    if config.tied:
        return EMBEDDING
    bound = sum(_rounding(checkpoint.dtype(name)) for name in (EMBEDDING, HEAD))
    rows, cols = checkpoint.shape(EMBEDDING)
    step = max(1, _PIECE_VALUES // cols)
    difference = energy = 0.0
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        one, other = (checkpoint.read(name, begin, end) for name in (EMBEDDING, HEAD))
        energy += float(np.vdot(other, other))
        one -= other
        difference += float(np.vdot(one, one))
        if not difference <= bound * energy:
            return None
    return HEAD if _bits(checkpoint, HEAD) > _bits(checkpoint, EMBEDDING) else EMBEDDING


def _bits(checkpoint: Checkpoint, name: str) -> float:
    return _QUANTISED_BITS.get(checkpoint.dtype(name), 16.0)


def _rounding(dtype: str) -> float:
    """More than quantising to a type changes a matrix, as a share of its energy; zero for floats.

    Each bit less makes the squared error about four times as large. From 2 to 8.5 bits, real matrices lose
    between a third and a half of this; two different matrices differ by about 2.
    """
    bits = _QUANTISED_BITS.get(dtype)
    return 0.0 if bits is None else 6.0 * 4.0**-bits
