"""GGUF: the one file format. Reading is native; writing streams, one tensor at a time."""

from __future__ import annotations

from .reader import GGUFFile, TensorInfo
from .types import TensorType, TypeInfo, tensor_bytes, type_info
from .writer import GGUFWriter

__all__ = ["GGUFFile", "GGUFWriter", "TensorInfo", "TensorType", "TypeInfo", "tensor_bytes", "type_info"]
