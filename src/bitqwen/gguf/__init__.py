"""GGUF: the one file format. Reading is native; writing streams, one tensor at a time."""

from __future__ import annotations

from .reader import GGUFFile, Metadata, TensorInfo
from .types import (
    FLOAT_TYPES,
    TensorType,
    TypeInfo,
    ValueType,
    codebook_name,
    codebook_shape,
    tensor_bytes,
    type_info,
)
from .writer import GGUFWriter, check_disk_space

__all__ = [
    "FLOAT_TYPES",
    "GGUFFile",
    "GGUFWriter",
    "Metadata",
    "TensorInfo",
    "TensorType",
    "TypeInfo",
    "ValueType",
    "check_disk_space",
    "codebook_name",
    "codebook_shape",
    "tensor_bytes",
    "type_info",
]
