"""A transformer run one layer at a time over a whole text, in float32, straight from a checkpoint.

The engine runs packed weights token after token through all layers. Calibration needs the opposite: every
token's input to one layer, with weights that are replaced while it runs. Memory is one layer and the text's
activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bitqwen.models.qwen2 import Qwen2Config

Matrix = npt.NDArray[np.float32]

# (names of the matrices, their common input [tokens, cols]) -> their weights [rows, cols], by name.
Weigh = Callable[[tuple[str, ...], Matrix], Mapping[str, Matrix]]

_ROWS = 2048  # tokens of the MLP computed at once
_PIECE_VALUES = 32 << 20


class Weights(Protocol):
    """What a model is run from: a checkpoint, or a file that is being changed; names are Hugging Face's."""

    def names(self) -> list[str]:
        """Names of all tensors."""

    def read(self, name: str, begin: int = 0, end: int | None = None, /) -> Matrix:
        """A tensor, or rows [begin, end) of it."""

    def release(self, name: str, /) -> None:
        """Says that it will not be read again soon."""


def layer_prefix(layer: int) -> str:
    """How the names of a layer's tensors begin."""
    return f"model.layers.{layer}."


def embed(checkpoint: Weights, config: Qwen2Config, ids: npt.NDArray[np.int64]) -> Matrix:
    """The embeddings of ids: float32 [ids, hidden]. Reads the matrix in pieces."""
    name = "model.embed_tokens.weight"
    out = np.empty((ids.size, config.hidden_size), np.float32)
    rows = max(1, _PIECE_VALUES // config.hidden_size)
    for begin in range(0, config.vocab_size, rows):
        end = min(begin + rows, config.vocab_size)
        here = (ids >= begin) & (ids < end)
        if here.any():
            out[here] = checkpoint.read(name, begin, end)[ids[here] - begin]
    checkpoint.release(name)
    return out


def rms_norm(x: Matrix, gain: Matrix, epsilon: float) -> Matrix:
    """RMSNorm of each row."""
    scale = 1.0 / np.sqrt(np.mean(np.square(x), axis=1, keepdims=True, dtype=np.float32) + epsilon)
    return np.asarray(x * scale * gain, np.float32)


def mean_squares(x: Matrix) -> Matrix:
    """The mean square of each column: float32 [cols]."""
    return np.asarray(np.einsum("ij,ij->j", x, x) / np.float32(len(x)), np.float32)


def softmax(rows: Matrix) -> None:
    """Logits or scores [rows, values] become probabilities, in place."""
    rows -= rows.max(axis=1, keepdims=True)
    np.exp(rows, out=rows)
    rows /= rows.sum(axis=1, keepdims=True)


def run_layer(
    hidden: Matrix, chunk: int, layer: int, checkpoint: Weights, config: Qwen2Config, weigh: Weigh
) -> None:
    """Runs one layer over all tokens; ``hidden`` is replaced by its output.

    Each matrix's weights are asked for when its input is known, so that what comes after sees what has
    become of those before.

    Args:
        hidden: the residual stream, float32 [tokens, hidden]; tokens are whole chunks.
        chunk: tokens that see each other.
        layer: which one.
        checkpoint: where norms and biases are read.
        config: the model's.
        weigh: gives weights for an input.
    """
    prefix = layer_prefix(layer)
    read = checkpoint.read
    x = rms_norm(hidden, read(prefix + "input_layernorm.weight"), config.rms_norm_eps)
    names = tuple(f"{prefix}self_attn.{part}_proj.weight" for part in "qkv")
    weights = weigh(names, x)
    query, key, value = (x @ weights[name].T + read(name[: -len("weight")] + "bias") for name in names)
    del x, weights
    mixed = attention(query, key, value, chunk, config)
    del query, key, value
    name = prefix + "self_attn.o_proj.weight"
    hidden += mixed @ weigh((name,), mixed)[name].T
    del mixed

    x = rms_norm(hidden, read(prefix + "post_attention_layernorm.weight"), config.rms_norm_eps)
    gate, up, down = (f"{prefix}mlp.{part}_proj.weight" for part in ("gate", "up", "down"))
    weights = weigh((gate, up), x)
    inner = np.empty((len(x), config.intermediate_size), np.float32)
    for begin in range(0, len(x), _ROWS):
        rows = slice(begin, begin + _ROWS)
        gated = x[rows] @ weights[gate].T
        inner[rows] = x[rows] @ weights[up].T
        # x * sigmoid(x); the exponent is bounded so that nothing overflows.
        inner[rows] *= gated / (1.0 + np.exp(-np.clip(gated, -80.0, 80.0)))
    del x, weights
    last = weigh((down,), inner)[down]
    for begin in range(0, len(hidden), _ROWS):
        rows = slice(begin, begin + _ROWS)
        hidden[rows] += inner[rows] @ last.T


class Rotation:
    """RoPE for the positions of a chunk."""

    def __init__(self, chunk: int, config: Qwen2Config) -> None:
        # Chunks are short: YaRN, which is for long contexts, is left out.
        width = config.head_dim
        frequency = config.rope_theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)
        angle = np.arange(chunk, dtype=np.float64)[:, None] * frequency
        self._cosine, self._sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def turn(self, x: Matrix) -> Matrix:
        """Turns vectors [..., chunk, head_dim] by their positions."""
        return self._turned(x, self._sine)

    def back(self, x: Matrix) -> Matrix:
        """Turns them back."""
        return self._turned(x, -self._sine)

    def _turned(self, x: Matrix, sine: Matrix) -> Matrix:
        first, second = np.split(x, 2, axis=-1)
        cosine = self._cosine
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def attention(query: Matrix, key: Matrix, value: Matrix, chunk: int, config: Qwen2Config) -> Matrix:
    """Causal attention inside each chunk.

    Args:
        query: float32 [tokens, heads * head_dim], before RoPE.
        key: float32 [tokens, kv_heads * head_dim], before RoPE.
        value: as ``key``.
        chunk: tokens of a chunk.
        config: the model's.

    Returns:
        float32 [tokens, heads * head_dim].
    """
    width, group = config.head_dim, config.heads // config.kv_heads
    rotation = Rotation(chunk, config)
    future = np.triu(np.full((chunk, chunk), -np.inf, np.float32), 1)
    out = np.empty_like(query)
    for begin in range(0, len(query), chunk):
        rows = slice(begin, begin + chunk)
        q = rotation.turn(query[rows].reshape(chunk, config.heads, width).transpose(1, 0, 2))
        k = rotation.turn(key[rows].reshape(chunk, config.kv_heads, width).transpose(1, 0, 2))
        v = value[rows].reshape(chunk, config.kv_heads, width).transpose(1, 0, 2)
        q *= np.float32(width**-0.5)
        for head in range(config.heads):
            scores = q[head] @ k[head // group].T
            scores += future
            softmax(scores)
            out[rows, head * width : (head + 1) * width] = scores @ v[head // group]
    return out
