"""A GGUF file's metadata, changed after the fact."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from .reader import GGUFFile
from .writer import GGUFWriter


def add_metadata(path: str | PathLike[str], values: Mapping[str, Any]) -> None:
    """Writes a file anew with more metadata; keys that are there take the new value.

    The new file replaces the old one when it is complete and on disk; tensors stay as they are.

    Args:
        path: the file.
        values: keys and values.

    Raises:
        ModelFileError: the file cannot be read, or holds tensors of types unknown to this version.
        ResourceError: the disk has no room for a second copy.
        UsageError: GGUF has no type for a value.
    """
    file = GGUFFile(path)
    with GGUFWriter(Path(path)) as writer:
        for key, value in file.metadata.items():
            writer.add_value(key, value, file.metadata.value_type(key))
        writer.add_metadata(values)
        for name, tensor in file.tensors.items():
            writer.add_tensor(name, tensor.shape, tensor.type)
        writer.begin()
        for name in file.tensors:
            writer.write(name, file.raw(name).data)
            file.release(name)
        writer.finish()
