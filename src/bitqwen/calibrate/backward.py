"""One pass back through the model: how its predictions depend on every matrix's outputs, and on every gain.

The gradient is, unless another is asked for, that of -log p(tokens) with tokens drawn from the model itself,
whose expected square is the Fisher information: the second derivative, at zero, of the KL divergence that an
error causes. No other model and no right answers are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen.models.qwen2 import Qwen2Config

from .transformer import Matrix, Rotation, Weights, embed, layer_prefix, rms_norm, softmax

Array = npt.NDArray[np.float32]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# (a matrix's name, its inputs, its outputs, the gradient of these), each float32 [tokens, width].
NoteMatrix = Callable[[str, Matrix, Matrix, Matrix], None]
# (which of the head's inputs, logits, their gradient), each of the latter float32 [rows, vocab].
NoteHead = Callable[[slice, Matrix, Matrix], None]
# (a norm's name, the gradient of its gains float32 [hidden]).
NoteGain = Callable[[str, Array], None]
# (which of the head's inputs, logits float32 [rows, vocab]) -> the gradient of these, as an array of its own.
LogitSlope = Callable[[slice, Matrix], Matrix]

LAST_NORM = "model.norm.weight"
_HEAD_ROWS = 64  # tokens whose logits are held at once
# Of what layers computed on the way to the head, float32; with more, each runs again on the way back.
_MOST_KEPT = 512 << 20
_MOST_WEIGHT = 1e5  # of a first token


def run_back(
    checkpoint: Weights,
    config: Qwen2Config,
    ids: npt.NDArray[np.int64],
    note: NoteMatrix,
    *,
    logit_slope: LogitSlope | None = None,
    note_head: Callable[[str, Matrix], NoteHead] | None = None,
    note_gain: NoteGain | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Matrix:
    """Runs a text through the model and back; returns the gradient of the embeddings.

    Takes about three passes over the text. Memory: the residual stream before each layer, or, of few tokens,
    up to 2 GiB of what layers computed; one layer, and the output head in float32.

    Args:
        checkpoint: the model.
        config: its configuration.
        ids: a text, int64 [chunks, tokens]; tokens of a chunk see each other.
        note: told of each matrix of the layers, from the last layer to the first.
        logit_slope: of what the gradient is; None for tokens drawn from the model.
        note_head: given the head's name and its inputs, what is then told of the logits, piece by piece.
        note_gain: told of each norm.
        seed: of the tokens drawn.
        progress: called with layers done and layers in all, twice the model's.
    """
    chunk = ids.shape[1]
    keep = ids.size * config.layers * (11 * config.hidden_size + 2 * config.intermediate_size) <= _MOST_KEPT
    kept: list[_Trace | Matrix] = []
    hidden = embed(checkpoint, config, ids.ravel())
    for layer in range(config.layers):
        if progress:
            progress(layer, 2 * config.layers)
        trace = _run_layer(hidden, chunk, layer, checkpoint, config)
        kept.append(trace if keep else hidden)
        hidden = trace.after
    note_gain = note_gain or (lambda name, slope: None)
    logit_slope = logit_slope or drawn_tokens(seed)
    gradient = _through_head(hidden, checkpoint, config, logit_slope, note_head, note_gain)
    for layer in reversed(range(config.layers)):
        if progress:
            progress(2 * config.layers - layer - 1, 2 * config.layers)
        found = kept.pop()
        trace = found if isinstance(found, _Trace) else _run_layer(found, chunk, layer, checkpoint, config)
        gradient = _through_layer(trace, gradient, layer, checkpoint, config, note, note_gain)
    if progress:
        progress(2 * config.layers, 2 * config.layers)
    return gradient


def head_name(checkpoint: Weights, config: Qwen2Config) -> str:
    """The matrix that logits come from."""
    return EMBEDDING if config.tied or HEAD not in checkpoint.names() else HEAD


def first_token_weights(
    checkpoint: Weights, config: Qwen2Config, ids: npt.NDArray[np.int64], *, seed: int = 0
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


def drawn_tokens(seed: int) -> LogitSlope:
    """The gradient of -log p(token), tokens drawn by their probability."""
    random = np.random.default_rng(seed)

    def slope(_: slice, logits: Matrix) -> Matrix:
        chances = np.array(logits, np.float32)
        softmax(chances)
        for row in chances:
            total = np.cumsum(row, dtype=np.float64)
            token = int(np.searchsorted(total, random.random() * total[-1]))
            row[min(token, len(row) - 1)] -= 1.0
        return chances

    return slope


def _rms_norm_back(
    gradient: Matrix, x: Matrix, name: str, checkpoint: Weights, epsilon: float, note_gain: NoteGain
) -> Matrix:
    """The gradient of an RMSNorm's input from that of its output."""
    inverse = 1.0 / np.sqrt(np.mean(np.square(x), axis=1, keepdims=True) + epsilon)
    note_gain(name, np.einsum("ij,ij->j", gradient, x * inverse))
    scaled = gradient * checkpoint.read(name)
    along = np.mean(scaled * x, axis=1, keepdims=True) * np.square(inverse)
    return np.asarray((scaled - x * along) * inverse, np.float32)


def _through_head(
    hidden: Matrix,
    checkpoint: Weights,
    config: Qwen2Config,
    logit_slope: LogitSlope,
    note_head: Callable[[str, Matrix], NoteHead] | None,
    note_gain: NoteGain,
) -> Matrix:
    x = rms_norm(hidden, checkpoint.read(LAST_NORM), config.rms_norm_eps)
    name = head_name(checkpoint, config)
    weights = checkpoint.read(name)
    note = note_head(name, x) if note_head else None
    slope = np.empty_like(x)
    for begin in range(0, len(x), _HEAD_ROWS):
        rows = slice(begin, begin + _HEAD_ROWS)
        logits = x[rows] @ weights.T
        pull = logit_slope(rows, logits)
        if note:
            note(rows, logits, pull)
        slope[rows] = pull @ weights
    checkpoint.release(name)
    return _rms_norm_back(slope, hidden, LAST_NORM, checkpoint, config.rms_norm_eps, note_gain)


class _Trace(NamedTuple):
    """What a layer computes, each float32 [tokens, width]: its input and, in their order, all that follows.

    ``plain`` are queries, keys and values before their biases; ``back`` leads from the gradient of ``mixed``
    to theirs.
    """

    before: Matrix
    x: Matrix
    plain: dict[str, Matrix]
    mixed: Matrix
    back: Callable[[Matrix], dict[str, Matrix]]
    added: Matrix
    middle: Matrix
    inner: Matrix
    gate: Matrix
    up: Matrix
    after: Matrix

    def activated(self) -> tuple[Matrix, Matrix]:
        """The sigmoid of the gate, and the inputs of down."""
        chance = np.asarray(1.0 / (1.0 + np.exp(-np.clip(self.gate, -80.0, 80.0))), np.float32)
        return chance, self.gate * chance * self.up


def _names(layer: int) -> tuple[dict[str, str], tuple[str, str]]:
    """A layer's matrices by their parts, and its norms."""
    prefix = layer_prefix(layer)
    name = {part: f"{prefix}self_attn.{part}_proj.weight" for part in "qkvo"}
    name |= {part: f"{prefix}mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    return name, (f"{prefix}input_layernorm.weight", f"{prefix}post_attention_layernorm.weight")


def _run_layer(before: Matrix, chunk: int, layer: int, checkpoint: Weights, config: Qwen2Config) -> _Trace:
    name, norms = _names(layer)
    read = checkpoint.read
    x = rms_norm(before, read(norms[0]), config.rms_norm_eps)
    plain = {part: x @ read(name[part]).T for part in "qkv"}
    biased = {part: plain[part] + read(name[part].removesuffix("weight") + "bias") for part in "qkv"}
    mixed, back = _attention(biased, chunk, config)
    added = mixed @ read(name["o"]).T
    middle = before + added
    inner = rms_norm(middle, read(norms[1]), config.rms_norm_eps)
    gate, up = inner @ read(name["gate"]).T, inner @ read(name["up"]).T
    trace = _Trace(before, x, plain, mixed, back, added, middle, inner, gate, up, middle)
    _, product = trace.activated()
    return trace._replace(after=middle + product @ read(name["down"]).T)


def _through_layer(
    trace: _Trace,
    gradient: Matrix,
    layer: int,
    checkpoint: Weights,
    config: Qwen2Config,
    note: NoteMatrix,
    note_gain: NoteGain,
) -> Matrix:
    """The gradient of a layer's input from that of its output; tells each matrix's inputs and outputs."""
    name, norms = _names(layer)
    read, epsilon = checkpoint.read, config.rms_norm_eps
    gate, up = trace.gate, trace.up
    chance, product = trace.activated()
    note(name["down"], product, trace.after - trace.middle, gradient)
    slope = gradient @ read(name["down"])
    up_slope = slope * gate * chance
    gate_slope = np.asarray(slope * up * chance * (1.0 + gate * (1.0 - chance)), np.float32)
    note(name["up"], trace.inner, up, up_slope)
    note(name["gate"], trace.inner, gate, gate_slope)
    into_norm = up_slope @ read(name["up"]) + gate_slope @ read(name["gate"])
    gradient = gradient + _rms_norm_back(into_norm, trace.middle, norms[1], checkpoint, epsilon, note_gain)

    note(name["o"], trace.mixed, trace.added, gradient)
    slopes = trace.back(gradient @ read(name["o"]))
    for part in "qkv":
        note(name[part], trace.x, trace.plain[part], slopes[part])
    into_norm = slopes["q"] @ read(name["q"])
    for part in "kv":
        into_norm += slopes[part] @ read(name[part])
    for each in name.values():
        checkpoint.release(each)
    return gradient + _rms_norm_back(into_norm, trace.before, norms[0], checkpoint, epsilon, note_gain)


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
        softmax(scores)
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
