"""One pass back through the model: how its predictions depend on every matrix's outputs.

The gradient is that of -log p(tokens) with tokens drawn from the model itself, whose expected square is the
Fisher information: the second derivative, at zero, of the KL divergence that an error causes. No other model
and no right answers are needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint
from bitqwen.models.qwen2 import Qwen2Config

from .transformer import Matrix, Rotation, embed, layer_prefix, rms_norm, run_layer

Array = npt.NDArray[np.float32]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# (a matrix's name, its inputs, its outputs, the gradient of these), each float32 [tokens, width].
NoteMatrix = Callable[[str, Matrix, Matrix, Matrix], None]
# (which of the head's inputs, logits, their gradient), each of the latter float32 [rows, vocab].
NoteHead = Callable[[slice, Matrix, Matrix], None]

_HEAD_ROWS = 64  # tokens whose logits are held at once
_MOST_WEIGHT = 1e5  # of a first token


def run_back(
    checkpoint: Checkpoint,
    config: Qwen2Config,
    ids: npt.NDArray[np.int64],
    note: NoteMatrix,
    *,
    note_head: Callable[[str, Matrix], NoteHead] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Matrix:
    """Runs a text through the model and back; returns the gradient of the embeddings.

    Takes about three passes over the text. Memory: the residual stream before each layer, one layer, and the
    output head in float32.

    Args:
        checkpoint: the model.
        config: its configuration.
        ids: a text, int64 [chunks, tokens]; tokens of a chunk see each other.
        note: told of each matrix of the layers, from the last layer to the first.
        note_head: given the head's name and its inputs, what is then told of the logits, piece by piece.
        seed: of the tokens drawn.
        progress: called with layers done and layers in all, twice the model's.
    """
    chunk = ids.shape[1]

    def read(names: tuple[str, ...], _: Matrix) -> dict[str, Matrix]:
        return {name: checkpoint.read(name) for name in names}

    stream = [embed(checkpoint, config, ids.ravel())]
    for layer in range(config.layers):
        if progress:
            progress(layer, 2 * config.layers)
        after = stream[-1].copy()
        run_layer(after, chunk, layer, checkpoint, config, read)
        stream.append(after)
    gradient = _through_head(stream.pop(), checkpoint, config, note_head, seed)
    for layer in reversed(range(config.layers)):
        if progress:
            progress(2 * config.layers - layer - 1, 2 * config.layers)
        gradient = _through_layer(stream.pop(), gradient, chunk, layer, checkpoint, config, note)
    if progress:
        progress(2 * config.layers, 2 * config.layers)
    return gradient


def head_name(checkpoint: Checkpoint, config: Qwen2Config) -> str:
    """The matrix that logits come from."""
    return EMBEDDING if config.tied or HEAD not in checkpoint.names() else HEAD


def first_token_weights(
    checkpoint: Checkpoint, config: Qwen2Config, ids: npt.NDArray[np.int64], *, seed: int = 0
) -> dict[str, float]:
    """How much the predictions depend on a chunk's first token, where another token counts one.

    That is the squared length of the gradient of a matrix's outputs, by the matrix's Hugging Face name. The
    first token, to which attention goes when nothing else calls for it, can weigh as much as hundreds of
    others in what makes its key and value, and nothing at all where outputs are added to a residual stream
    that dwarfs them.

    Args:
        checkpoint: the model.
        config: its configuration.
        ids: a text, int64 [chunks, tokens].
        seed: of the tokens drawn.
    """
    found = {}

    def note(name: str, inputs: Matrix, outputs: Matrix, slope: Matrix) -> None:
        found[name] = first_weight(slope, ids.shape[1])

    run_back(checkpoint, config, ids, note, seed=seed)
    return found


def first_weight(slope: Matrix, chunk: int) -> float:
    """The squared length of a matrix's gradient at chunks' first tokens, that at others being one.

    Args:
        slope: the gradient of its outputs, float32 [tokens, width]; whole chunks.
        chunk: tokens of a chunk.
    """
    squares = np.einsum("ij,ij->i", slope, slope).reshape(-1, chunk)
    others = float(squares[:, 1:].mean(dtype=np.float64)) if chunk > 1 else 0.0
    first = float(squares[:, 0].mean(dtype=np.float64))
    return min(first / others, _MOST_WEIGHT) if others > 0 else 1.0


def _rms_norm_back(gradient: Matrix, x: Matrix, gain: Array, epsilon: float) -> Matrix:
    """The gradient of an RMSNorm's input from that of its output."""
    inverse = 1.0 / np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + epsilon)
    scaled = gradient * gain
    along = np.mean(scaled * x, axis=1, keepdims=True) * np.square(inverse)
    return np.asarray((scaled - x * along) * inverse, np.float32)


def _through_head(
    hidden: Matrix,
    checkpoint: Checkpoint,
    config: Qwen2Config,
    note_head: Callable[[str, Matrix], NoteHead] | None,
    seed: int,
) -> Matrix:
    gain = checkpoint.read("model.norm.weight")
    x = rms_norm(hidden, gain, config.rms_norm_eps)
    name = head_name(checkpoint, config)
    weights = checkpoint.read(name)
    note = note_head(name, x) if note_head else None
    random = np.random.default_rng(seed)
    slope = np.empty_like(x)
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
        if note:
            note(rows, logits, chances)
        slope[rows] = chances @ weights
    checkpoint.release(name)
    return _rms_norm_back(slope, hidden, gain, config.rms_norm_eps)


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
