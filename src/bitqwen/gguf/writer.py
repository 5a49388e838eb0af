"""Writing GGUF: declare everything, then stream tensor after tensor.

The file grows under a temporary name beside its destination and takes its own name only when it is
complete and on disk. Whatever happens before that leaves no file behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from bitqwen.errors import ModelFileError, ResourceError, UsageError

from .types import tensor_bytes

_MAGIC = 0x46554747
_VERSION = 3
_ALIGNMENT = 32
_SPARE_BYTES = 64 << 20  # left free on the disk beside the file itself

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64 = 4, 5, 6, 7, 8, 9, 10, 11


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _integer_type(values: Sequence[int]) -> tuple[int, str]:
    low, high = min(values), max(values)
    if low >= 0:
        return (_UINT32, "I") if high < 2**32 else (_UINT64, "Q")
    return (_INT32, "i") if low >= -(2**31) and high < 2**31 else (_INT64, "q")


def _array(key: str, values: Sequence[Any]) -> bytes:
    if all(isinstance(v, str) for v in values):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(values)) + b"".join(map(_string, values))
    if all(isinstance(v, bool) for v in values):
        return struct.pack("<IIQ", _ARRAY, _BOOL, len(values)) + bytes(values)
    if all(isinstance(v, int) for v in values):
        # Signed 32 bits where they fit: what other readers expect of token types.
        small = min(values) >= -(2**31) and max(values) < 2**31
        kind, code = (_INT32, "i") if small else _integer_type(values)
        return struct.pack("<IIQ", _ARRAY, kind, len(values)) + struct.pack(f"<{len(values)}{code}", *values)
    if all(isinstance(v, (int, float)) for v in values):
        return struct.pack("<IIQ", _ARRAY, _FLOAT32, len(values)) + np.asarray(values, "<f4").tobytes()
    raise UsageError(f"metadata {key!r}: an array must hold only strings, booleans, integers or floats")


def encode_value(key: str, value: Any) -> bytes:
    """The type and bytes of one metadata value.

    Raises:
        UsageError: the value is of no type that GGUF knows.
    """
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        kind, code = _integer_type([value])
        return struct.pack(f"<I{code}", kind, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, (list, tuple)):
        return _array(key, value)
    raise UsageError(f"metadata {key!r}: {type(value).__name__} is not a GGUF value")


class GGUFWriter:
    """One GGUF file in the making.

    Declare all metadata and tensors, call :meth:`begin`, then :meth:`write` each tensor in the declared
    order, then :meth:`finish`. As a context manager it aborts on an exception.

    Raises:
        ResourceError: the disk has too little space (checked by :meth:`begin`) or became full.
        ModelFileError: the destination cannot be written.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._metadata: dict[str, bytes] = {}
        self._tensors: list[tuple[str, tuple[int, ...], int, int]] = []  # name, shape, type, bytes
        self._names: set[str] = set()
        self._file: Any = None
        self._temporary: Path | None = None
        self._next = 0

    def add_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Declares keys and values; a key declared again takes the new value."""
        for key, value in metadata.items():
            self._metadata[key] = encode_value(key, value)

    def add_tensor(self, name: str, shape: tuple[int, ...], tensor_type: int) -> int:
        """Declares the next tensor (``shape`` in numpy's order); returns its bytes."""
        if name in self._names:
            raise UsageError(f"tensor {name!r} is declared twice")
        nbytes = tensor_bytes(tensor_type, shape)
        self._names.add(name)
        self._tensors.append((name, tuple(shape), int(tensor_type), nbytes))
        return nbytes

    @property
    def nbytes(self) -> int:
        """The complete file's size in bytes."""
        return len(self._header()) + sum(_padded(nbytes) for *_, nbytes in self._tensors)

    def _header(self) -> bytes:
        parts = [struct.pack("<IIQQ", _MAGIC, _VERSION, len(self._tensors), len(self._metadata))]
        parts += [_string(key) + value for key, value in self._metadata.items()]
        offset = 0
        for name, shape, tensor_type, nbytes in self._tensors:
            dimensions = shape[::-1]
            parts.append(_string(name))
            parts.append(struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions))
            parts.append(struct.pack("<IQ", tensor_type, offset))
            offset += _padded(nbytes)
        header = b"".join(parts)
        return header + bytes(_padded(len(header)) - len(header))

    def begin(self) -> None:
        """Checks the disk's free space, creates the temporary file and writes the header."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path.parent).free
            needed = self.nbytes
            if needed + _SPARE_BYTES > free:
                raise ResourceError(
                    f"{self.path} needs {needed / 1e9:.2f} GB; its disk has {free / 1e9:.2f} GB free",
                    hint="Free some space or write to another disk.",
                )
            descriptor, name = tempfile.mkstemp(
                prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent
            )
        except OSError as error:
            raise ModelFileError(f"cannot write {self.path}: {error.strerror}") from error
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb")
        self._put(self._header())

    def write(self, name: str, *parts: Any) -> None:
        """Writes the next declared tensor; see :meth:`write_parts`."""
        self.write_parts(name, parts)

    def write_parts(self, name: str, parts: Iterable[Any]) -> None:
        """Writes the next declared tensor from pieces of its bytes (with the buffer interface)."""
        if self._next >= len(self._tensors) or self._tensors[self._next][0] != name:
            raise UsageError(f"tensor {name!r} is not the next one declared")
        nbytes = self._tensors[self._next][3]
        written = 0
        for part in parts:
            view = memoryview(part).cast("B")
            written += view.nbytes
            self._put(view)
        if written != nbytes:
            raise UsageError(f"tensor {name!r} has {written} bytes; {nbytes} were declared")
        self._put(bytes(_padded(nbytes) - nbytes))
        self._next += 1

    def _put(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.abort()
            raise ResourceError(
                f"cannot write {self.path}: {error.strerror}",
                hint="Free some space or write to another disk.",
            ) from error

    def finish(self) -> None:
        """Syncs the file to disk and gives it its name."""
        if self._next != len(self._tensors):
            raise UsageError(f"tensor {self._tensors[self._next][0]!r} was declared and not written")
        assert self._temporary is not None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            # mkstemp makes files private; a model is as readable as any file its user creates.
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(self._file.fileno(), 0o666 & ~mask)
            self._file.close()
            self._temporary.replace(self.path)
        except OSError as error:
            self.abort()
            raise ResourceError(f"cannot write {self.path}: {error.strerror}") from error
        self._temporary = None
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def abort(self) -> None:
        """Removes the temporary file, if there is one."""
        if self._temporary is not None:
            with contextlib.suppress(OSError):  # what a full disk would not take does not matter any more
                self._file.close()
            self._temporary.unlink(missing_ok=True)
            self._temporary = None

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()


def _padded(nbytes: int) -> int:
    return (nbytes + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


__all__ = ["GGUFWriter", "encode_value"]
