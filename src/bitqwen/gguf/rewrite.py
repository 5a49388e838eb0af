"""A GGUF file, changed after the fact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .reader import GGUFFile
from .writer import GGUFWriter

# (file, a tensor's name) -> what to write in its place, of as many bytes; None for what is there.
Change = Callable[[GGUFFile, str], "npt.NDArray[np.generic] | None"]


def rewrite(
    file: GGUFFile,
    output: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    changed: Change | None = None,
) -> None:
    """Writes a file anew; types and shapes of tensors stay as they are.

    Args:
        file: the file.
        output: where the new one goes, the same path or another.
        metadata: keys and values to add; keys that are there take the new value.
        changed: gives the tensors that are no longer the same.

    Raises:
        ModelFileError: the file holds tensors of types unknown to this version.
        ResourceError: the disk has no room for a second copy.
        UsageError: GGUF has no type for a value.
    """
    with GGUFWriter(output) as writer:
        for key, value in file.metadata.items():
            writer.add_value(key, value, file.metadata.value_type(key))
        writer.add_metadata(metadata or {})
        for name, tensor in file.tensors.items():
            writer.add_tensor(name, tensor.shape, tensor.type)
        writer.begin()
        for name in file.tensors:
            new = None if changed is None else changed(file, name)
            writer.write(name, file.raw(name).data if new is None else np.ascontiguousarray(new).data)
            file.release(name)
        writer.finish()


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
    rewrite(GGUFFile(path), Path(path), metadata=values)
