"""A GGUF file opened for reading: metadata and tensors, lazily."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike, fspath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen import _native

from .types import TensorType, ValueType


class TensorInfo(NamedTuple):
    """One tensor of a file; ``shape`` in numpy's order, ``offset`` in bytes from the file's beginning.

    ``type`` is a plain ``int`` when bitqwen does not read that type; ``nbytes`` is then the room up to the
    next tensor. ``type_name`` is readable either way: "Q4_K", "MXFP4".
    """

    name: str
    type: TensorType | int
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    type_name: str


class Metadata(Mapping[str, Any]):
    """A file's metadata; a value is decoded when it is first asked for.

    Integers, floats, booleans and strings come as Python's; arrays as lists. A string's bytes that are not
    UTF-8 are replaced by U+FFFD.
    """

    def __init__(self, file: _native.GgufFile) -> None:
        self._file = file
        self._keys = dict.fromkeys(file.keys())
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            if key not in self._keys:
                raise KeyError(key)
            self._values[key] = self._file.value(key)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def length(self, key: str) -> int:
        """Elements of an array value, without decoding it; 1 for anything else."""
        return self._file.value_type(key)[2]

    def value_type(self, key: str) -> ValueType:
        """The type of a value as the file declares it; of an array, its elements' type."""
        kind, element, _ = self._file.value_type(key)
        return ValueType(element if kind == ValueType.ARRAY else kind)


class GGUFFile:
    """A GGUF file, mapped read-only.

    Attributes:
        path: the file's path.
        metadata: keys and values, in the file's order.
        tensors: every tensor by name, in the file's order, those of types that bitqwen does not read too.

    Raises:
        ModelFileError: the file cannot be read, is cut off, or is not what the format says.
        UnsupportedModelError: a version of the format that bitqwen does not read.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._file = _native.GgufFile(fspath(path))
        self.path: str = self._file.path
        self.metadata = Metadata(self._file)
        self.tensors: dict[str, TensorInfo] = {}
        known = set(TensorType)
        for name, type_id, shape, offset, nbytes in self._file.tensors():
            tensor_type = TensorType(type_id) if type_id in known else type_id
            type_name = self._file.type_name(type_id)
            self.tensors[name] = TensorInfo(name, tensor_type, shape, offset, nbytes, type_name)

    @property
    def native(self) -> _native.GgufFile:
        """The native reader, for the engine."""
        return self._file

    @property
    def nbytes(self) -> int:
        """The file's size in bytes."""
        return self._file.size

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as they lie in the file, not copied.

        Raises:
            UsageError: there is no such tensor.
            UnsupportedModelError: its type is not one that bitqwen reads.
            ModelFileError: the file was changed since it was opened.
        """
        return self._file.raw(name)

    def read(
        self, name: str, begin: int = 0, end: int | None = None, *, threads: int = 0
    ) -> npt.NDArray[np.float32]:
        """The tensor, or its rows [begin, end), as float32, dequantised by ``threads`` threads (0: all).

        Raises:
            UsageError: there is no such tensor.
            UnsupportedModelError: its type is not one that bitqwen reads.
            ModelFileError: the file was changed since it was opened.
        """
        values = self._file.read(name, threads, begin, -1 if end is None else end)
        if begin == 0 and end is None:
            return values.reshape(self.tensors[name].shape)
        return values

    def release(self, name: str) -> None:
        """Lets the system drop the tensor's pages: reading a large file then stays in little memory."""
        self._file.release(name)
