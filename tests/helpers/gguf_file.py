"""Tiny GGUF files, written by the gguf package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitqwen.checkpoints.huggingface import HuggingFaceCheckpoint
from bitqwen.models.registry import config_from_hf
from helpers.tiny_checkpoint import TinyCheckpoint


def write_gguf(
    path: Path, tiny: TinyCheckpoint, *, matrices: str = "F32", without: tuple[str, ...] = (), **changes: Any
) -> Path:
    """A checkpoint as a GGUF file.

    Args:
        path: the file to write.
        tiny: what goes into it.
        matrices: the type of two-dimensional tensors, as the gguf package names it; others are F32.
        without: metadata keys and tensors to leave out.
        **changes: metadata keys, with "__" for ".", and other values for them.
    """
    import gguf

    checkpoint = HuggingFaceCheckpoint(tiny.folder)
    config = config_from_hf(checkpoint.config)
    writer = gguf.GGUFWriter(path, "qwen2")
    metadata = config.to_gguf_metadata() | checkpoint.tokenizer().padded(config.vocab_size).to_gguf_metadata()
    metadata |= {"tokenizer.chat_template": checkpoint.chat_template, "general.name": "Tiny"}
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in metadata.items():
        if key not in without and value is not None:
            _add(writer, key, value)
    kind = gguf.GGMLQuantizationType[matrices]
    for spec in config.tensors():
        if spec.hf_name in tiny.weights and spec.gguf_name not in without:
            values = tiny.weights[spec.hf_name]
            if values.ndim == 2:
                writer.add_tensor(spec.gguf_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(spec.gguf_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
