"""Qwen2 and Qwen2.5: a pre-norm transformer with grouped-query attention and biases on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitqwen.errors import CheckpointError, UnsupportedModelError

from .fields import Fields
from .specification import TensorSpec, validate

# Above any real model, and small enough that a hostile configuration cannot make us plan for much.
_MAX_WIDTH = 1 << 20
_MAX_LAYERS = 1024
_MAX_HEADS = 4096
_MAX_HEAD_DIM = 1024
_MAX_VOCABULARY = 1 << 20
_MAX_CONTEXT = 1 << 24

# Old checkpoints store the rotary frequencies, which follow from rope_theta.
IGNORED_TENSORS = ("rotary_emb.inv_freq",)

# YaRN's further settings at the values that bitqwen runs: those of the paper.
_YARN_CONSTANTS: dict[str, tuple[Any, ...]] = {
    "attention_factor": (None,),
    "beta_fast": (None, 32),
    "beta_slow": (None, 1),
    "mscale": (None,),
    "mscale_all_dim": (None,),
    "truncate": (None, True),
}
# What GGUF calls the fields of config.json.
_GGUF_KEYS = {
    "hidden_size": "qwen2.embedding_length",
    "intermediate_size": "qwen2.feed_forward_length",
    "num_hidden_layers": "qwen2.block_count",
    "num_attention_heads": "qwen2.attention.head_count",
    "num_key_value_heads": "qwen2.attention.head_count_kv",
    "head_dim": "qwen2.attention.key_length",
    "rms_norm_eps": "qwen2.attention.layer_norm_rms_epsilon",
    "rope_theta": "qwen2.rope.freq_base",
    "max_position_embeddings": "qwen2.context_length",
    "is_causal": "qwen2.attention.causal",
    "vocab_size": "the number of rows of token_embd.weight",
}
_GGUF_YARN_KEYS = {
    "rope_type": "qwen2.rope.scaling.type",
    "factor": "qwen2.rope.scaling.factor",
    "original_max_position_embeddings": "qwen2.rope.scaling.original_context_length",
    "attention_factor": "qwen2.rope.scaling.attn_factor",
    "beta_fast": "qwen2.rope.scaling.yarn_beta_fast",
    "beta_slow": "qwen2.rope.scaling.yarn_beta_slow",
}


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): ``factor`` times the original context."""

    factor: float
    original_context: int


@dataclass(frozen=True)
class Qwen2Config:
    """Hyperparameters, read from a checkpoint's own configuration and never from a size's name.

    Attributes:
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        layers: transformer blocks.
        heads: query heads.
        kv_heads: key and value heads; divides ``heads``.
        head_dim: width of a head.
        vocab_size: rows of the embedding, padding included.
        rms_norm_eps: RMSNorm's epsilon.
        rope_theta: base of the rotary frequencies.
        rope_scaling: YaRN, or None.
        context_length: positions the model was trained for, before YaRN.
        tied: whether the embedding is the output head too.
    """

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
        """From a Hugging Face ``config.json``, as transformers 4 or 5 spells it.

        Raises:
            UnsupportedModelError: a feature that bitqwen does not run: sliding windows, quantised weights,
                another activation, another rope scaling than YaRN.
            CheckpointError: a value is missing or impossible.
        """
        _refuse_unsupported(config, source)
        fields = Fields(config, source)
        rope = fields.mapping("rope_parameters")  # transformers 5: theta and scaling in one place
        if any(isinstance(value, Mapping) for value in rope.values()):
            raise UnsupportedModelError(f"{source}: rope_parameters by layer type are not supported")
        scaling = rope if _scaling_kind(rope) else fields.mapping("rope_scaling")
        # An absent theta is transformers' default.
        theta = Fields({**config, **rope}, source).number("rope_theta", 1, 1e12, 10000.0)
        context = fields.integer("max_position_embeddings", _MAX_CONTEXT)
        return cls._build(fields, theta, _yarn(Fields(scaling, source), context, source), source)

    @classmethod
    def from_gguf(
        cls, metadata: Mapping[str, Any], tensors: Mapping[str, Any], *, source: str = "the GGUF metadata"
    ) -> Qwen2Config:
        """From a GGUF file's metadata, and its tensors' shapes for what the metadata does not say.

        Raises:
            UnsupportedModelError: another architecture, or a feature that bitqwen does not run.
            CheckpointError: a value is missing or impossible.
        """
        architecture = metadata.get("general.architecture")
        if architecture != cls.architecture:
            raise UnsupportedModelError(
                f"{source}: a model of architecture {architecture!r}; supported: qwen2 (Qwen2, Qwen2.5)"
            )
        embedding = tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise CheckpointError(f"{source}: the file has no matrix token_embd.weight")
        values = {key: metadata.get(spelled) for key, spelled in _GGUF_KEYS.items()}
        values["vocab_size"] = embedding.shape[0]
        values["tie_word_embeddings"] = "output.weight" not in tensors
        fields = Fields(values, source, _GGUF_KEYS)
        yarn = Fields(
            {key: metadata.get(spelled) for key, spelled in _GGUF_YARN_KEYS.items()}, source, _GGUF_YARN_KEYS
        )
        if not fields.flag("is_causal", True):
            raise UnsupportedModelError(f"{source}: qwen2.attention.causal false is not supported")
        theta = fields.number("rope_theta", 1, 1e12, 10000.0)
        context = fields.integer("max_position_embeddings", _MAX_CONTEXT)
        return cls._build(fields, theta, _yarn(yarn, context, source), source)

    @classmethod
    def _build(cls, fields: Fields, theta: float, scaling: YarnScaling | None, source: str) -> Qwen2Config:
        hidden = fields.integer("hidden_size", _MAX_WIDTH)
        heads = fields.integer("num_attention_heads", _MAX_HEADS)
        kv_heads = fields.integer("num_key_value_heads", _MAX_HEADS, heads)
        if heads % kv_heads:
            raise CheckpointError(f"{source}: {kv_heads} key/value heads do not divide {heads} heads")
        if fields.get("head_dim") is None and hidden % heads:
            raise CheckpointError(f"{source}: {heads} heads do not divide the hidden size {hidden}")
        head_dim = fields.integer("head_dim", _MAX_HEAD_DIM, hidden // heads)
        if head_dim % 2:
            raise CheckpointError(
                f"{source}: heads are {head_dim} values wide; an even number is allowed, for rotary embedding"
            )
        return cls(
            hidden_size=hidden,
            intermediate_size=fields.integer("intermediate_size", _MAX_WIDTH),
            layers=fields.integer("num_hidden_layers", _MAX_LAYERS),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=fields.integer("vocab_size", _MAX_VOCABULARY),
            rms_norm_eps=fields.number("rms_norm_eps", 0, 1),
            rope_theta=theta,
            rope_scaling=scaling,
            context_length=fields.integer("max_position_embeddings", _MAX_CONTEXT),
            tied=fields.flag("tie_word_embeddings"),
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
        """Compares a checkpoint's tensors (Hugging Face's names) with these settings.

        Raises:
            CheckpointError: names what is missing, unexpected or mis-shaped, with what was expected.
        """
        validate(
            {spec.hf_name: spec for spec in self.tensors()}, shapes, source=source, ignored=IGNORED_TENSORS
        )

    def validate_gguf(self, shapes: Mapping[str, tuple[int, ...]], *, source: str) -> None:
        """Compares a GGUF file's tensors (GGUF's names) with these settings.

        Raises:
            CheckpointError: names what is missing, unexpected or mis-shaped, with what was expected.
        """
        validate({spec.gguf_name: spec for spec in self.tensors()}, shapes, source=source)


def _refuse_unsupported(config: Mapping[str, Any], source: str) -> None:
    """Raises UnsupportedModelError for what would run and give wrong results."""
    layer_types = config.get("layer_types")
    other_layers = isinstance(layer_types, list) and any(kind != "full_attention" for kind in layer_types)
    if config.get("use_sliding_window") or other_layers:
        raise UnsupportedModelError(
            f"{source}: use_sliding_window (attention to the last positions only) is not supported",
            hint="Qwen2.5's own checkpoints do not use it.",
        )
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(
            f"{source}: hidden_act {config['hidden_act']!r} is not supported; 'silu' is"
        )
    if config.get("is_causal") is False:
        raise UnsupportedModelError(f"{source}: is_causal false (an embedding model) is not supported")
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
    if method is not None and method != "bitnet":  # BitNet's checkpoints hold ordinary values
        raise UnsupportedModelError(
            f"{source}: weights quantised by {method!r} are not supported",
            hint="Convert the original checkpoint, in bf16, f16 or f32.",
        )


def _scaling_kind(scaling: Mapping[str, Any]) -> Any:
    """The rope scaling's type; None if there is no scaling."""
    kind = scaling.get("rope_type") or scaling.get("type")
    return None if kind in ("default", "none") else kind


def _yarn(scaling: Fields, context: int, source: str) -> YarnScaling | None:
    kind = _scaling_kind({key: scaling.get(key) for key in ("rope_type", "type")})
    if kind is None:
        return None
    if kind != "yarn":
        raise UnsupportedModelError(f"{source}: rope scaling {kind!r} is not supported; 'yarn' is")
    for key, supported in _YARN_CONSTANTS.items():
        if scaling.get(key) not in supported:
            raise UnsupportedModelError(
                f"{source}: YaRN with {scaling.spelled(key)} {scaling.get(key)!r} is not supported; "
                f"{supported[-1] if len(supported) > 1 else 'leaving it out'} is"
            )
    return YarnScaling(
        factor=scaling.number("factor", 1, 1024),
        original_context=scaling.integer("original_max_position_embeddings", _MAX_CONTEXT, context),
    )
