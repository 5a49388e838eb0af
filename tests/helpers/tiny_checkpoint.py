"""Small random Qwen2 checkpoints in Hugging Face's layout, down to the last file."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from helpers.tiny_tokenizer import CHAT_TEMPLATE, CONTROL, tiny_tokenizer

DType = Literal["BF16", "F16", "F32"]
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class TinyModel:
    """What to build. Widths are multiples of 256 by default, so that every tensor type fits.

    Attributes:
        head_dim: default: ``hidden // heads``.
        vocab_size: rows of the embedding; those past the tokenizer's tokens are padding.
        shards: safetensors files; 1 means ``model.safetensors`` without an index.
        yarn: YaRN's factor; the original context is ``context``.
        rope_spelling: config.json's rope settings as transformers 4 ("old") or 5 ("new") writes them.
        stored_head: a tied checkpoint that stores ``lm_head.weight`` all the same.
        bias_scale: standard deviation of the biases of q, k and v.
        config: further entries of config.json, or replacements.
    """

    hidden: int = 256
    intermediate: int = 512
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int | None = None
    vocab_size: int = 512
    context: int = 512
    tied: bool = True
    dtype: DType = "BF16"
    shards: int = 1
    yarn: float | None = None
    rope_theta: float = 1e6
    rope_spelling: Literal["old", "new"] = "old"
    stored_head: bool = False
    bias_scale: float = 0.5
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored tensor by its Hugging Face name."""
        width = self.head_dim or self.hidden // self.heads
        query, kv = self.heads * width, self.kv_heads * width
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden)}
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            shapes |= {
                f"{layer}input_layernorm.weight": (self.hidden,),
                f"{layer}self_attn.q_proj.weight": (query, self.hidden),
                f"{layer}self_attn.q_proj.bias": (query,),
                f"{layer}self_attn.k_proj.weight": (kv, self.hidden),
                f"{layer}self_attn.k_proj.bias": (kv,),
                f"{layer}self_attn.v_proj.weight": (kv, self.hidden),
                f"{layer}self_attn.v_proj.bias": (kv,),
                f"{layer}self_attn.o_proj.weight": (self.hidden, query),
                f"{layer}post_attention_layernorm.weight": (self.hidden,),
                f"{layer}mlp.gate_proj.weight": (self.intermediate, self.hidden),
                f"{layer}mlp.up_proj.weight": (self.intermediate, self.hidden),
                f"{layer}mlp.down_proj.weight": (self.hidden, self.intermediate),
            }
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied or self.stored_head:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden)
        return shapes

    def config_json(self) -> dict[str, Any]:
        """The contents of config.json."""
        control = {token: tiny_tokenizer().token_to_id(token) for token in CONTROL}
        config: dict[str, Any] = {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context,
            "max_window_layers": self.layers,
            "rms_norm_eps": 1e-6,
            "sliding_window": self.context,
            "use_sliding_window": False,
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab_size,
            "bos_token_id": control["<|endoftext|>"],
            "eos_token_id": control["<|im_end|>"],
        }
        if self.head_dim is not None:
            config["head_dim"] = self.head_dim
        scaling = {"factor": self.yarn, "original_max_position_embeddings": self.context}
        torch_name = _TORCH_NAMES[self.dtype]
        if self.rope_spelling == "new":
            rope: dict[str, Any] = {"rope_theta": self.rope_theta, "rope_type": "default"}
            config["rope_parameters"] = rope | ({"rope_type": "yarn", **scaling} if self.yarn else {})
            config["dtype"] = torch_name
        else:
            config["rope_theta"] = self.rope_theta
            config["torch_dtype"] = torch_name
            if self.yarn:
                config["rope_scaling"] = {"type": "yarn", **scaling}
        return config | self.config


@dataclass(frozen=True)
class TinyCheckpoint:
    """A checkpoint on disk.

    Attributes:
        folder: where it lies.
        model: what it was built from.
        weights: each tensor's values as float32, exactly those that the files hold.
    """

    folder: Path
    model: TinyModel
    weights: dict[str, npt.NDArray[np.float32]]


def build(folder: Path, model: TinyModel) -> TinyCheckpoint:
    """Writes config, weights and tokenizer files into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: _rounded(values, model.dtype) for name, values in _random_weights(model)}
    _write_json(folder / "config.json", model.config_json())
    _write_weights(folder, weights, model)
    write_tokenizer(folder)
    return TinyCheckpoint(folder, model, weights)


def write_safetensors(path: Path, weights: dict[str, npt.NDArray[np.float32]], dtype: DType) -> None:
    """One safetensors file; its own package writes bfloat16 only through torch."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = []
    end = 0
    for name, values in weights.items():
        data.append(_raw(values, dtype))
        begin, end = end, end + len(data[-1])
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [begin, end]}
    path.write_bytes(safetensors_bytes(header, b"".join(data)))


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    """The format: the header's length, the header as JSON padded to eight bytes, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and generation_config.json."""
    backend = tiny_tokenizer()
    backend.save(str(folder / "tokenizer.json"))
    backend.model.save(str(folder))
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in document["added_tokens"]
        },
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    end_of_text, end_of_turn = (backend.token_to_id(token) for token in ("<|endoftext|>", "<|im_end|>"))
    generation = {
        "bos_token_id": end_of_text,
        "pad_token_id": end_of_text,
        "do_sample": True,
        "eos_token_id": [end_of_turn, end_of_text],
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
    }
    _write_json(folder / "generation_config.json", generation)


def _random_weights(model: TinyModel) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Values that keep activations and logits near one in size."""
    random = np.random.default_rng(model.seed)
    for name, shape in model.shapes().items():
        values = random.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            yield name, 1 + np.float32(0.1) * values
        elif name.endswith("bias"):
            yield name, np.float32(model.bias_scale) * values
        else:
            yield name, values / np.float32(math.sqrt(shape[1]))


def _rounded(values: npt.NDArray[np.float32], dtype: DType) -> npt.NDArray[np.float32]:
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return values


def _raw(values: npt.NDArray[np.float32], dtype: DType) -> bytes:
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype("<f4").tobytes()


def _write_weights(folder: Path, weights: dict[str, npt.NDArray[np.float32]], model: TinyModel) -> None:
    if model.shards == 1:
        write_safetensors(folder / "model.safetensors", weights, model.dtype)
        return
    names = list(weights)
    weight_map = {}
    for i in range(model.shards):
        shard = f"model-{i + 1:05}-of-{model.shards:05}.safetensors"
        begin, end = (len(names) * k // model.shards for k in (i, i + 1))
        part = {name: weights[name] for name in names[begin:end]}
        write_safetensors(folder / shard, part, model.dtype)
        weight_map |= dict.fromkeys(part, shard)
    total = sum(values.size for values in weights.values()) * (4 if model.dtype == "F32" else 2)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
