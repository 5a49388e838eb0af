"""How much each matrix matters: one pass back through the model for all of them.

If a matrix loses the share e of its outputs' energy, the model's predictions change by about ``nats * e``.
The second derivative of the KL divergence at zero is the Fisher information, the expected square of the
gradient G of log p(tokens) with tokens drawn from the model itself: an error E of the weights costs
<G, E>^2 / 2. Errors are taken as independent noise, the larger in a column, the less its inputs matter, as
quantising with importance makes them. No other model and no right answers are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint
from bitqwen.models.qwen2 import Qwen2Config

from .transformer import Matrix, Rotation, embed, layer_prefix, mean_squares, rms_norm, run_layer

Array = npt.NDArray[np.float32]

_HEAD_ROWS = 64  # tokens whose logits are held at once
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Sensitivity(NamedTuple):
    """What is known of a matrix.

    Attributes:
        nats: KL divergence a token, for each share of the outputs' energy that is lost, while it is small.
        importance: mean squares of its inputs, float32 [cols]; ones for rows that are only looked up.
        energy: mean squared length of its outputs.
    """

    nats: float
    importance: Array
    energy: float


def sensitivities(
    checkpoint: Checkpoint,
    config: Qwen2Config,
    ids: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Sensitivity]:
    """The sensitivity of every matrix, by its Hugging Face name; a tied embedding's is that of both its uses.

    Takes about three passes over the text. Memory: the residual stream before each layer, one layer, and the
    output head in float32.

    Args:
        checkpoint: the model.
        config: its configuration.
        ids: a text, int64 [chunks, tokens].
        seed: of the tokens drawn.
        progress: called with layers done and layers in all, twice the model's.
    """
    tokens, chunk = ids.size, ids.shape[1]
    found: dict[str, Sensitivity] = {}

    def read(names: tuple[str, ...], _: Matrix) -> dict[str, Matrix]:
        return {name: checkpoint.read(name) for name in names}

    stream = [embed(checkpoint, config, ids.ravel())]
    for layer in range(config.layers):
        if progress:
            progress(layer, 2 * config.layers)
        after = stream[-1].copy()
        run_layer(after, chunk, layer, checkpoint, config, read)
        stream.append(after)
    head = EMBEDDING if config.tied or HEAD not in checkpoint.names() else HEAD
    gradient, found[head] = _through_head(stream.pop(), checkpoint, config, head, seed)
    for layer in reversed(range(config.layers)):
        if progress:
            progress(2 * config.layers - layer - 1, 2 * config.layers)

        def note(name: str, inputs: Matrix, outputs: Matrix, slope: Matrix) -> None:
            energy = _energy(outputs)
            nats = energy * _nats_per_energy(inputs, slope, chunk) / tokens
            found[name] = Sensitivity(nats, mean_squares(inputs), energy)

        gradient = _through_layer(stream.pop(), gradient, chunk, layer, checkpoint, config, note)
    energy = _energy(embed(checkpoint, config, ids.ravel()))
    nats = energy * _nats_per_row_energy(gradient, ids) / tokens
    if head == EMBEDDING:
        found[EMBEDDING] = found[EMBEDDING]._replace(nats=found[EMBEDDING].nats + nats)
    else:
        found[EMBEDDING] = Sensitivity(nats, np.ones(config.hidden_size, np.float32), energy)
    if progress:
        progress(2 * config.layers, 2 * config.layers)
    return found


def noise_weights(importance: Array) -> Array:
    """What the error of each column weighs: its importance, and a little for those that are hardly used."""
    return np.asarray(importance + np.float32(0.01) * importance.mean() + np.float32(1e-30), np.float32)


def _energy(outputs: Matrix) -> float:
    """Mean squared length of a row."""
    return float(np.square(outputs, dtype=np.float64).sum()) / len(outputs)


def _nats_per_energy(inputs: Matrix, slope: Matrix, chunk: int) -> float:
    """Of all tokens together, for noise that costs the outputs one unit of energy.

    The variance of the noise in a column is v over the column's weight, so that each column costs as much:
    rows * cols * v in all.
    """
    weights = noise_weights(mean_squares(inputs))
    squares = 0.0
    for begin in range(0, len(inputs), chunk):
        # Tokens of a chunk act on each other; those of different chunks are drawn independently.
        rows = slice(begin, begin + chunk)
        gradient = slope[rows].T @ inputs[rows]
        columns = np.einsum("ij,ij->j", gradient, gradient)
        squares += float((columns / weights).sum(dtype=np.float64))
    return 0.5 * squares / float(slope.shape[1] * inputs.shape[1])


def _nats_per_row_energy(slope: Matrix, ids: npt.NDArray[np.int64]) -> float:
    """The same for an embedding's rows, each off in the same way wherever its token stands."""
    squares = 0.0
    for chunk, part in zip(ids, slope.reshape(*ids.shape, -1), strict=True):
        known, places = np.unique(chunk, return_inverse=True)
        sums = np.zeros((len(known), part.shape[1]), np.float64)
        np.add.at(sums, places.ravel(), part)
        squares += float(np.square(sums).sum())
    return 0.5 * squares / float(slope.shape[1])


def _rms_norm_back(gradient: Matrix, x: Matrix, gain: Array, epsilon: float) -> Matrix:
    """The gradient of an RMSNorm's input from that of its output."""
    inverse = 1.0 / np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + epsilon)
    scaled = gradient * gain
    along = np.mean(scaled * x, axis=1, keepdims=True) * np.square(inverse)
    return np.asarray((scaled - x * along) * inverse, np.float32)


def _through_head(
    hidden: Matrix, checkpoint: Checkpoint, config: Qwen2Config, head: str, seed: int
) -> tuple[Matrix, Sensitivity]:
    gain = checkpoint.read("model.norm.weight")
    x = rms_norm(hidden, gain, config.rms_norm_eps)
    weights = checkpoint.read(head)
    random = np.random.default_rng(seed)
    slope = np.empty_like(x)
    importance = mean_squares(x)
    inverse = 1.0 / np.sqrt(noise_weights(importance))
    squares = energy = 0.0
    for begin in range(0, len(x), _HEAD_ROWS):
        rows = slice(begin, begin + _HEAD_ROWS)
        logits = x[rows] @ weights.T
        chances = logits - logits.max(axis=1, keepdims=True)
        np.exp(chances, out=chances)
        chances /= chances.sum(axis=1, keepdims=True)
        for row in chances:  # becomes the gradient of -log p(token), for a token drawn from it
            total = np.cumsum(row, dtype=np.float64)
            token = int(np.searchsorted(total, random.random() * total[-1]))
            row[min(token, len(row) - 1)] -= 1.0
        # |sum of g x'|^2 by the tokens' products: the head's gradient itself is as large as the head.
        scaled = x[rows] * inverse
        squares += float(np.sum((chances @ chances.T) * (scaled @ scaled.T), dtype=np.float64))
        energy += float(np.vdot(logits, logits))
        slope[rows] = chances @ weights
    checkpoint.release(head)
    energy /= len(x)
    nats = 0.5 * energy * squares / (len(weights) * x.shape[1]) / len(x)
    gradient = _rms_norm_back(slope, hidden, gain, config.rms_norm_eps)
    return gradient, Sensitivity(nats, importance, energy)


def _through_layer(
    before: Matrix,
    gradient: Matrix,
    chunk: int,
    layer: int,
    checkpoint: Checkpoint,
    config: Qwen2Config,
    note: Callable[[str, Matrix, Matrix, Matrix], None],
) -> Matrix:
    """The gradient of a layer's input from that of its output; tells each matrix's inputs and outputs."""
    prefix, epsilon = layer_prefix(layer), config.rms_norm_eps
    name = {part: f"{prefix}self_attn.{part}_proj.weight" for part in "qkvo"}
    name |= {part: f"{prefix}mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    weights = {part: checkpoint.read(each) for part, each in name.items()}
    gains = [checkpoint.read(f"{prefix}{which}_layernorm.weight") for which in ("input", "post_attention")]
    x = rms_norm(before, gains[0], epsilon)
    plain = {part: x @ weights[part].T for part in "qkv"}
    biased = {part: plain[part] + checkpoint.read(name[part][: -len("weight")] + "bias") for part in "qkv"}
    mixed, back = _attention(biased, chunk, config)
    added = mixed @ weights["o"].T
    middle = before + added
    inner = rms_norm(middle, gains[1], epsilon)
    gate, up = inner @ weights["gate"].T, inner @ weights["up"].T
    chance = 1.0 / (1.0 + np.exp(-np.clip(gate, -80.0, 80.0)))
    product = gate * chance * up

    note(name["down"], product, product @ weights["down"].T, gradient)
    slope = gradient @ weights["down"]
    up_slope = slope * gate * chance
    gate_slope = slope * up * chance * (1.0 + gate * (1.0 - chance))
    note(name["up"], inner, up, up_slope)
    note(name["gate"], inner, gate, gate_slope)
    slope = up_slope @ weights["up"] + gate_slope @ weights["gate"]
    gradient = gradient + _rms_norm_back(slope, middle, gains[1], epsilon)

    note(name["o"], mixed, added, gradient)
    slopes = back(gradient @ weights["o"])
    for part in "qkv":
        note(name[part], x, plain[part], slopes[part])
    slope = slopes["q"] @ weights["q"] + slopes["k"] @ weights["k"] + slopes["v"] @ weights["v"]
    for each in name.values():
        checkpoint.release(each)
    return gradient + _rms_norm_back(slope, before, gains[0], epsilon)


def _attention(
    biased: dict[str, Matrix], chunk: int, config: Qwen2Config
) -> tuple[Matrix, Callable[[Matrix], dict[str, Matrix]]]:
    """Causal attention inside each chunk, and the way back from its output's gradient to q's, k's and v's."""
    width, heads, kv_heads = config.head_dim, config.heads, config.kv_heads
    group = heads // kv_heads
    rotation = Rotation(chunk, config)
    scale = np.float32(width**-0.5)
    future = np.triu(np.full((chunk, chunk), -np.inf, np.float32), 1)
    tokens = len(biased["q"])

    def split(x: Matrix, count: int, begin: int) -> Matrix:
        part: Matrix = x[begin : begin + chunk].reshape(chunk, count, width).transpose(1, 0, 2)
        return part

    def shares(q: Matrix, k: Matrix) -> Matrix:
        scores: Matrix = (q @ k.T) * scale + future
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        return scores

    def rotated(begin: int) -> tuple[Matrix, Matrix, Matrix]:
        return (
            rotation.turn(split(biased["q"], heads, begin)),
            rotation.turn(split(biased["k"], kv_heads, begin)),
            split(biased["v"], kv_heads, begin),
        )

    mixed = np.empty_like(biased["q"])
    for begin in range(0, tokens, chunk):
        q, k, v = rotated(begin)
        out = mixed[begin : begin + chunk].reshape(chunk, heads, width)
        for head in range(heads):
            out[:, head] = shares(q[head], k[head // group]) @ v[head // group]

    def back(gradient: Matrix) -> dict[str, Matrix]:
        slopes = {part: np.empty_like(each) for part, each in biased.items()}
        for begin in range(0, tokens, chunk):
            q, k, v = rotated(begin)
            wanted = split(gradient, heads, begin)
            dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
            for head in range(heads):
                own = head // group
                p = shares(q[head], k[own])
                dv[own] += p.T @ wanted[head]
                dp = wanted[head] @ v[own].T
                ds = p * (dp - np.sum(dp * p, axis=1, keepdims=True)) * scale
                dq[head] = ds @ k[own]
                dk[own] += ds.T @ q[head]
            for part, each in (("q", rotation.back(dq)), ("k", rotation.back(dk)), ("v", dv)):
                slopes[part][begin : begin + chunk] = each.transpose(1, 0, 2).reshape(chunk, -1)
        return slopes

    return mixed, back
