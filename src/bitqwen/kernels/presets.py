"""The sizes that Qwen2.5 was published in, for generating kernels without a checkpoint at hand."""

from __future__ import annotations

from bitqwen.errors import UsageError
from bitqwen.models.qwen2 import Qwen2Config

# hidden, intermediate, layers, heads, kv heads, vocabulary, tied: from each checkpoint's own config.json.
_SHAPES = {
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "3b": (2048, 11008, 36, 16, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "14b": (5120, 13824, 48, 40, 8, 152064, False),
    "32b": (5120, 27648, 64, 40, 8, 152064, False),
    "72b": (8192, 29568, 80, 64, 8, 152064, False),
}
SIZES = tuple(_SHAPES)


def preset(size: str) -> Qwen2Config:
    """The hyperparameters of a published size.

    Raises:
        UsageError: there is no such size.
    """
    if size.lower() not in _SHAPES:
        raise UsageError(
            f"size {size!r} is none of Qwen2.5's",
            hint=f"Allowed: {', '.join(name.upper() for name in SIZES)}; for any other model give its "
            "config.json with --config, or the model itself.",
        )
    hidden, width, layers, heads, kv_heads, vocabulary, tied = _SHAPES[size.lower()]
    return Qwen2Config(
        hidden_size=hidden,
        intermediate_size=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocabulary,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        rope_scaling=None,
        context_length=32768,
        tied=tied,
    )
