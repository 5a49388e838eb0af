"""The same model in other numbers: a source that lies on no quantiser's grid.

A checkpoint that was quantised before, as most that can be had offline were, lies on the grid of some type: a
program that stores a matrix in that very type loses nothing, and looks better than it is. This writes a GGUF
file whose every matrix is another one while the function is the same: the channels of the residual stream are
permuted, each norm's gains are multiplied by random factors that the next matrices are divided by, values are
rotated inside each head and the output matrix rotated back, queries and keys are turned alike within each
rotary pair, and the MLP's neurons are scaled between up and down.

    python benchmarks/neutral_source.py SOURCE OUTPUT.gguf [--type f16|f32] [--seed 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint, open_checkpoint
from bitqwen.convert.metadata import file_metadata
from bitqwen.convert.plan import Job, plan_tensors
from bitqwen.gguf import GGUFWriter, TensorType
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import quantize, schemes

Array = npt.NDArray[np.float32]

_PIECE_ROWS = 8192


def factors(random: np.random.Generator, count: int) -> Array:
    """Positive factors around 1, from about a half to two."""
    return np.exp(random.normal(0.0, 0.25, count)).astype(np.float32)


class LayerTransform:
    """The random choices for one layer."""

    def __init__(self, config: Qwen2Config, seed: int, layer: int) -> None:
        random = np.random.default_rng([seed, layer])
        width = config.head_dim
        self.config = config
        self.attention_gain = factors(random, config.hidden_size)
        self.mlp_gain = factors(random, config.hidden_size)
        signs = random.choice(np.array([-1.0, 1.0], np.float32), config.intermediate_size)
        self.neurons = factors(random, config.intermediate_size) * signs
        # Orthogonal: values are rotated in each key/value head.
        self.rotations = np.linalg.qr(random.standard_normal((config.kv_heads, width, width)))[0]
        angles = random.uniform(0.0, 2.0 * np.pi, (config.kv_heads, width // 2))
        self.cosine, self.sine = np.cos(angles), np.sin(angles)

    def turn(self, rows: Array, heads: int) -> Array:
        """Turns queries or keys, or their biases, within each rotary pair: [heads * head_dim, ...]."""
        width = self.config.head_dim
        parts = rows.reshape(heads, width, -1).astype(np.float64)
        group = heads // self.config.kv_heads
        cosine = np.repeat(self.cosine, group, axis=0)[:, :, None]
        sine = np.repeat(self.sine, group, axis=0)[:, :, None]
        first, second = parts[:, : width // 2], parts[:, width // 2 :]
        out = np.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=1)
        return out.reshape(rows.shape).astype(np.float32)

    def rotate_values(self, rows: Array) -> Array:
        """Rotates values or their biases: [kv_heads * head_dim, ...]."""
        parts = rows.reshape(self.config.kv_heads, self.config.head_dim, -1).astype(np.float64)
        return (self.rotations @ parts).reshape(rows.shape).astype(np.float32)

    def rotate_back(self, matrix: Array) -> Array:
        """The output matrix [hidden, heads * head_dim], for rotated values."""
        heads, width = self.config.heads, self.config.head_dim
        group = heads // self.config.kv_heads
        rotations = np.repeat(self.rotations, group, axis=0)
        parts = matrix.reshape(len(matrix), heads, width).astype(np.float64)
        return np.einsum("rhw,hvw->rhv", parts, rotations).reshape(matrix.shape).astype(np.float32)

    def apply(self, part: str, x: Array) -> Array:
        """A tensor of the layer, by its name without the layer's prefix; before the channels are permuted."""
        heads, kv_heads = self.config.heads, self.config.kv_heads
        match part:
            case "input_layernorm.weight":
                return x * self.attention_gain
            case "post_attention_layernorm.weight":
                return x * self.mlp_gain
            case "self_attn.q_proj.weight":
                return self.turn(x / self.attention_gain, heads)
            case "self_attn.k_proj.weight":
                return self.turn(x / self.attention_gain, kv_heads)
            case "self_attn.q_proj.bias":
                return self.turn(x, heads)
            case "self_attn.k_proj.bias":
                return self.turn(x, kv_heads)
            case "self_attn.v_proj.weight":
                return self.rotate_values(x / self.attention_gain)
            case "self_attn.v_proj.bias":
                return self.rotate_values(x)
            case "self_attn.o_proj.weight":
                return self.rotate_back(x)
            case "mlp.gate_proj.weight":
                return x / self.mlp_gain
            case "mlp.up_proj.weight":
                return x / self.mlp_gain * self.neurons[:, None]
            case "mlp.down_proj.weight":
                return x / self.neurons
        raise ValueError(f"no rule for {part}")


# Whose rows are channels of the residual stream; all others have them as columns.
_ROWS_ARE_CHANNELS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
_NO_CHANNELS = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


def transformed(x: Array, name: str, config: Qwen2Config, seed: int, order: npt.NDArray[np.int64]) -> Array:
    """A tensor of the neutral source, from that of the source."""
    part = name
    if name.startswith("model.layers."):
        layer, part = name.removeprefix("model.layers.").split(".", 1)
        x = LayerTransform(config, seed, int(layer)).apply(part, x)
    if part.endswith(_NO_CHANNELS):
        return x
    return x[order] if part in _ROWS_ARE_CHANNELS else x[..., order]


def write(source: str | Path, output: Path, *, tensor_type: TensorType, seed: int) -> None:
    """Writes the neutral source of a checkpoint."""
    checkpoint = open_checkpoint(source)
    config = config_from_hf(checkpoint.config, source=str(source))
    config.validate(checkpoint.shapes(), source=str(source))
    jobs = plan_tensors(checkpoint, config, schemes.get("f16"))
    order = np.random.default_rng([seed, 1 << 20]).permutation(config.hidden_size)
    types = {job: tensor_type if len(job.spec.shape) > 1 else TensorType.F32 for job in jobs}
    with GGUFWriter(output) as writer:
        settings = {"neutral_source_seed": str(seed)}
        writer.add_metadata(
            file_metadata(checkpoint, config, scheme="neutral", file_type=1, settings=settings)
        )
        for job, kind in types.items():
            writer.add_tensor(job.spec.gguf_name, job.spec.shape, kind)
        writer.begin()
        for job, kind in types.items():
            parts = _pieces(checkpoint, job, config, seed, order)
            encoded = (quantize(part, kind, method="plain").data for part in parts)
            writer.write_parts(job.spec.gguf_name, encoded)
            checkpoint.release(job.source)
        writer.finish()


def _pieces(
    checkpoint: Checkpoint, job: Job, config: Qwen2Config, seed: int, order: npt.NDArray[np.int64]
) -> list[Array] | object:
    if job.spec.role in ("embedding", "head"):  # large, and each row by itself
        return (
            transformed(
                checkpoint.read(job.source, begin, min(begin + _PIECE_ROWS, config.vocab_size)),
                job.spec.hf_name,
                config,
                seed,
                order,
            )
            for begin in range(0, config.vocab_size, _PIECE_ROWS)
        )
    return [transformed(checkpoint.read(job.source), job.spec.hf_name, config, seed, order)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source", help="a checkpoint folder, a GGUF file, or package:NAME")
    parser.add_argument("output", type=Path)
    parser.add_argument("--type", choices=("f16", "f32"), default="f16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.source, options.output, tensor_type=TensorType[options.type.upper()], seed=options.seed)


if __name__ == "__main__":
    main()
