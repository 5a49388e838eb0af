"""Qwen2 and Qwen2.5: a pre-norm transformer with grouped-query attention and biases on q, k and v."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitqwen.errors import CheckpointError, UnsupportedModelError

from .specification import TensorSpec, validate

# Far above any real model: what a hostile configuration may make us plan for.
_MAX_WIDTH = 1 << 20
_MAX_LAYERS = 1024
_MAX_HEADS = 4096
_MAX_VOCABULARY = 1 << 24
_MAX_CONTEXT = 1 << 24

# Old checkpoints store the rotary frequencies, which follow from rope_theta.
IGNORED_TENSORS = ("rotary_emb.inv_freq",)


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): ``factor`` times the original context."""

    factor: float
    original_context: int


class _Fields:
    """Typed, bounded look-ups in a mapping that nobody has checked yet."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self._source = source

    def integer(self, key: str, high: int, default: int | None = None) -> int:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            raise CheckpointError(
                f"{self._source}: {key} is {value!r}; an integer from 1 to {high} is allowed"
            )
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise CheckpointError(
                f"{self._source}: {key} is {value!r}; a number from {low} to {high} is allowed"
            )
        return float(value)


@dataclass(frozen=True)
class Qwen2Config:
    """Hyperparameters, read from a checkpoint's own configuration and never from a size's name."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: YarnScaling | None
    context_length: int
    tied: bool

    architecture = "qwen2"

    @property
    def max_context(self) -> int:
        """Positions that the model can use: its context, or what YaRN stretches it to."""
        if self.rope_scaling is None:
            return self.context_length
        return max(self.context_length, int(self.rope_scaling.factor * self.rope_scaling.original_context))

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, source: str = "config.json") -> Qwen2Config:
        """From a Hugging Face ``config.json``, in the old or the new spelling of its rope settings.

        Raises:
            UnsupportedModelError: sliding windows, another activation, or a rope scaling but YaRN.
            CheckpointError: a value is missing or impossible.
        """
        fields = _Fields(config, source)
        if config.get("use_sliding_window"):
            raise UnsupportedModelError(f"{source}: use_sliding_window is not supported")
        if config.get("hidden_act", "silu") != "silu":
            raise UnsupportedModelError(
                f"{source}: hidden_act {config['hidden_act']!r} is not supported; 'silu' is"
            )
        hidden = fields.integer("hidden_size", _MAX_WIDTH)
        heads = fields.integer("num_attention_heads", _MAX_HEADS)
        kv_heads = fields.integer("num_key_value_heads", _MAX_HEADS, heads)
        if heads % kv_heads:
            raise CheckpointError(f"{source}: {kv_heads} key/value heads do not divide {heads} heads")
        if not config.get("head_dim") and hidden % heads:
            raise CheckpointError(f"{source}: {heads} heads do not divide the hidden size {hidden}")
        head_dim = fields.integer("head_dim", 1024) if config.get("head_dim") else hidden // heads
        context = fields.integer("max_position_embeddings", _MAX_CONTEXT)
        rope = config.get("rope_parameters") or {}  # transformers 5: theta and scaling in one place
        scaling = rope if rope.get("rope_type", "default") != "default" else config.get("rope_scaling")
        return cls(
            hidden_size=hidden,
            intermediate_size=fields.integer("intermediate_size", _MAX_WIDTH),
            layers=fields.integer("num_hidden_layers", _MAX_LAYERS),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=fields.integer("vocab_size", _MAX_VOCABULARY),
            rms_norm_eps=fields.number("rms_norm_eps", 0, 1),
            rope_theta=_Fields({**config, **rope}, source).number("rope_theta", 1, 1e12, 10000.0),
            rope_scaling=_yarn(scaling, context, source),
            context_length=context,
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Qwen2Config:
        """From a GGUF file's metadata and tensors.

        Raises:
            UnsupportedModelError: another architecture or rope scaling.
            CheckpointError: a value is missing or impossible.
        """
        architecture = metadata.get("general.architecture")
        if architecture != "qwen2":
            raise UnsupportedModelError(
                f"the file holds a model of architecture {architecture!r}; supported: qwen2 (Qwen2, Qwen2.5)"
            )
        if "token_embd.weight" not in tensors:
            raise CheckpointError("the file has no tensor token_embd.weight")
        prefix = "qwen2."
        scaling = None
        if metadata.get(f"{prefix}rope.scaling.type", "none") != "none":
            scaling = {
                "type": metadata[f"{prefix}rope.scaling.type"],
                "factor": metadata.get(f"{prefix}rope.scaling.factor"),
                "original_max_position_embeddings": metadata.get(
                    f"{prefix}rope.scaling.original_context_length"
                ),
            }
        return cls.from_hf(
            {
                "hidden_size": metadata.get(f"{prefix}embedding_length"),
                "intermediate_size": metadata.get(f"{prefix}feed_forward_length"),
                "num_hidden_layers": metadata.get(f"{prefix}block_count"),
                "num_attention_heads": metadata.get(f"{prefix}attention.head_count"),
                "num_key_value_heads": metadata.get(f"{prefix}attention.head_count_kv"),
                "head_dim": metadata.get(f"{prefix}attention.key_length"),
                "vocab_size": tensors["token_embd.weight"].shape[0],
                "rms_norm_eps": metadata.get(f"{prefix}attention.layer_norm_rms_epsilon"),
                "rope_theta": metadata.get(f"{prefix}rope.freq_base", 10000.0),
                "rope_scaling": scaling,
                "max_position_embeddings": metadata.get(f"{prefix}context_length"),
                "tie_word_embeddings": "output.weight" not in tensors,
            },
            source="the GGUF metadata",
        )

    def to_hf(self) -> dict[str, Any]:
        """The same as Hugging Face's ``config.json`` spells it."""
        scaling = self.rope_scaling
        return {
            "model_type": "qwen2",
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling
            and {
                "type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_context,
            },
            "max_position_embeddings": self.context_length,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
        }

    def to_gguf_metadata(self) -> dict[str, Any]:
        """The ``qwen2.*`` keys of a GGUF file."""
        metadata: dict[str, Any] = {
            "qwen2.block_count": self.layers,
            "qwen2.context_length": self.context_length,
            "qwen2.embedding_length": self.hidden_size,
            "qwen2.feed_forward_length": self.intermediate_size,
            "qwen2.attention.head_count": self.heads,
            "qwen2.attention.head_count_kv": self.kv_heads,
            "qwen2.attention.layer_norm_rms_epsilon": self.rms_norm_eps,
            "qwen2.rope.freq_base": self.rope_theta,
        }
        if self.head_dim * self.heads != self.hidden_size:
            metadata["qwen2.attention.key_length"] = self.head_dim
            metadata["qwen2.attention.value_length"] = self.head_dim
        if self.rope_scaling:
            metadata["qwen2.rope.scaling.type"] = "yarn"
            metadata["qwen2.rope.scaling.factor"] = self.rope_scaling.factor
            metadata["qwen2.rope.scaling.original_context_length"] = self.rope_scaling.original_context
        return metadata

    def tensors(self) -> list[TensorSpec]:
        """Every tensor of a model with these settings, in the order of a GGUF file."""
        hidden, width = self.hidden_size, self.intermediate_size
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        specs = [
            TensorSpec(
                "model.embed_tokens.weight", "token_embd.weight", (self.vocab_size, hidden), "embedding"
            ),
            TensorSpec("model.norm.weight", "output_norm.weight", (hidden,), "norm"),
            # A tied checkpoint may store the head all the same.
            TensorSpec(
                "lm_head.weight", "output.weight", (self.vocab_size, hidden), "head", optional=self.tied
            ),
        ]
        for i in range(self.layers):
            hf, gguf = f"model.layers.{i}.", f"blk.{i}."
            specs += [
                TensorSpec(f"{hf}input_layernorm.weight", f"{gguf}attn_norm.weight", (hidden,), "norm"),
                TensorSpec(f"{hf}self_attn.q_proj.weight", f"{gguf}attn_q.weight", (query, hidden), "matrix"),
                TensorSpec(f"{hf}self_attn.q_proj.bias", f"{gguf}attn_q.bias", (query,), "bias"),
                TensorSpec(f"{hf}self_attn.k_proj.weight", f"{gguf}attn_k.weight", (kv, hidden), "matrix"),
                TensorSpec(f"{hf}self_attn.k_proj.bias", f"{gguf}attn_k.bias", (kv,), "bias"),
                TensorSpec(f"{hf}self_attn.v_proj.weight", f"{gguf}attn_v.weight", (kv, hidden), "matrix"),
                TensorSpec(f"{hf}self_attn.v_proj.bias", f"{gguf}attn_v.bias", (kv,), "bias"),
                TensorSpec(
                    f"{hf}self_attn.o_proj.weight", f"{gguf}attn_output.weight", (hidden, query), "matrix"
                ),
                TensorSpec(
                    f"{hf}post_attention_layernorm.weight", f"{gguf}ffn_norm.weight", (hidden,), "norm"
                ),
                TensorSpec(f"{hf}mlp.gate_proj.weight", f"{gguf}ffn_gate.weight", (width, hidden), "matrix"),
                TensorSpec(f"{hf}mlp.up_proj.weight", f"{gguf}ffn_up.weight", (width, hidden), "matrix"),
                TensorSpec(f"{hf}mlp.down_proj.weight", f"{gguf}ffn_down.weight", (hidden, width), "matrix"),
            ]
        return specs

    def validate(self, shapes: Mapping[str, tuple[int, ...]], *, source: str) -> None:
        """Checks a checkpoint's tensors (HF names).

        Raises:
            CheckpointError: names what is missing, unexpected or mis-shaped, with what was expected.
        """
        validate(self.tensors(), shapes, source=source, ignored=IGNORED_TENSORS)


def _yarn(scaling: Mapping[str, Any] | None, context: int, source: str) -> YarnScaling | None:
    if not scaling:
        return None
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in (None, "default"):
        return None
    if kind != "yarn":
        raise UnsupportedModelError(f"{source}: rope scaling {kind!r} is not supported; 'yarn' is")
    fields = _Fields(scaling, source)
    factor = fields.number("factor", 1, 1024)
    if scaling.get("original_max_position_embeddings") is not None:
        original = fields.integer("original_max_position_embeddings", _MAX_CONTEXT)
    else:
        original = context
    if not math.isfinite(factor):
        raise CheckpointError(f"{source}: rope scaling factor {factor!r} is not a number")
    return YarnScaling(factor, original)
