"""Writing GGUF: declare everything, then stream tensor after tensor.

The file grows under a temporary name beside its destination and takes its own name only when it is
complete and on disk. Whatever happens before that leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import struct
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from bitqwen.errors import BitqwenError, ModelFileError, ResourceError, UsageError
from bitqwen.files import sync_folder

from .types import ValueType, tensor_bytes
from .values import encode_string, encode_value

_MAGIC = 0x46554747
_VERSION = 3
_ALIGNMENT = 32
_MAX_NAME_BYTES = 63  # what llama.cpp reads
_MAX_KEY_BYTES = 65535
_SPARE_BYTES = 64 << 20  # left free on the disk beside the file itself
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    tensor_type: int
    nbytes: int


def check_disk_space(path: Path, nbytes: int) -> None:
    """Checks that a file of that size fits on the disk that its path lies on.

    Raises:
        ResourceError: it does not.
        OSError: the disk cannot be looked at.
    """
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if nbytes + _SPARE_BYTES > free:
        raise ResourceError(
            f"{path} needs {nbytes / 1e9:.2f} GB; its disk has {free / 1e9:.2f} GB free",
            hint="Free some space or write to another disk.",
        )


class GGUFWriter:
    """One GGUF file in the making.

    Declare all metadata and tensors, call :meth:`begin`, then :meth:`write` each tensor in the declared
    order, then :meth:`finish`. As a context manager it aborts whatever has not been finished.

    Raises:
        ResourceError: the disk has too little space (checked by :meth:`begin`) or became full.
        ModelFileError: the destination cannot be written.
        UsageError: a call out of this order, or what GGUF cannot hold.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._metadata: dict[str, bytes] = {}
        self._tensors: dict[str, _Tensor] = {}
        self._file: BinaryIO | None = None
        self._temporary: Path | None = None
        self._new_folders: list[Path] = []
        self._waiting: list[_Tensor] | None = None  # declared and not written, the next one last

    def add_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Declares keys and values; a key declared again takes the new value."""
        for key, value in metadata.items():
            self.add_value(key, value)

    def add_value(self, key: str, value: Any, value_type: ValueType | None = None) -> None:
        """Declares one key; ``value_type`` of the value or of its elements, see :func:`encode_value`."""
        self._check_declaring()
        _check_name(key, _MAX_KEY_BYTES, "metadata key")
        self._metadata[key] = encode_value(key, value, value_type)

    def add_tensor(self, name: str, shape: tuple[int, ...], tensor_type: int) -> int:
        """Declares the next tensor (``shape`` in numpy's order); returns its bytes."""
        self._check_declaring()
        _check_name(name, _MAX_NAME_BYTES, "tensor name")
        if name in self._tensors:
            raise UsageError(f"tensor {name!r} is declared twice")
        if not 1 <= len(shape) <= 4 or min(shape) < 1:
            raise UsageError(
                f"tensor {name!r} has shape {tuple(shape)}",
                hint="1 to 4 dimensions of 1 or more are allowed.",
            )
        nbytes = tensor_bytes(tensor_type, shape)
        self._tensors[name] = _Tensor(name, tuple(map(int, shape)), int(tensor_type), nbytes)
        return nbytes

    @property
    def nbytes(self) -> int:
        """The complete file's size in bytes."""
        return len(self._header()) + sum(_padded(tensor.nbytes) for tensor in self._tensors.values())

    def _check_declaring(self) -> None:
        if self._waiting is not None:
            raise UsageError("metadata and tensors are declared before begin()")

    def _header(self) -> bytes:
        parts = [struct.pack("<IIQQ", _MAGIC, _VERSION, len(self._tensors), len(self._metadata))]
        parts += [encode_string(key) + value for key, value in self._metadata.items()]
        offset = 0
        for name, shape, tensor_type, nbytes in self._tensors.values():
            parts.append(encode_string(name))
            parts.append(struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]))
            parts.append(struct.pack("<IQ", tensor_type, offset))
            offset += _padded(nbytes)
        header = b"".join(parts)
        return header + bytes(_padded(len(header)) - len(header))

    def begin(self) -> None:
        """Checks the disk's free space, creates the temporary file and writes the header."""
        self._check_declaring()
        try:
            if self.path.is_dir():
                raise ModelFileError(f"{self.path} is a folder", hint="Give the name of a file.")
            check_disk_space(self.path, self.nbytes)
            self._new_folders = [folder for folder in self.path.parents if not folder.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
            self._file = temporary.open("xb")
            self._temporary = temporary
        except OSError as error:
            self.abort()
            raise _write_error(self.path, error) from error
        self._waiting = list(self._tensors.values())[::-1]
        self._put(self._header())

    def write(self, name: str, *parts: Any) -> None:
        """Writes the next declared tensor; see :meth:`write_parts`."""
        self.write_parts(name, parts)

    def write_parts(self, name: str, parts: Iterable[Any]) -> None:
        """Writes the next declared tensor from pieces of its bytes (contiguous, with the buffer interface).

        Pieces of another size than the declared one end the writing: nothing is left behind.
        """
        if self._file is None or not self._waiting or self._waiting[-1].name != name:
            raise UsageError(f"tensor {name!r} is not the next one declared", hint=self._next_step())
        nbytes = self._waiting[-1].nbytes
        written = 0
        for part in parts:
            view = memoryview(part).cast("B")
            written += view.nbytes
            if written > nbytes:
                break
            self._put(view)
        if written != nbytes:
            self.abort()
            raise UsageError(
                f"tensor {name!r} has {'more than ' if written > nbytes else ''}"
                f"{min(written, nbytes)} bytes; {nbytes} were declared"
            )
        self._put(bytes(_padded(nbytes) - nbytes))
        self._waiting.pop()

    def _next_step(self) -> str:
        if self._waiting is None:
            return "Call begin() first."
        if self._file is None:
            return "The file was finished or aborted."
        return f"Write {self._waiting[-1].name!r} next." if self._waiting else "Call finish()."

    def _put(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        try:
            self._file.write(data)
        except OSError as error:
            self.abort()
            raise _write_error(self.path, error) from error

    def finish(self) -> None:
        """Syncs the file to disk and gives it its name."""
        if self._file is None or self._temporary is None or self._waiting:
            raise UsageError("the file is not complete", hint=self._next_step())
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self.path)
        except OSError as error:
            self.abort()
            raise _write_error(self.path, error) from error
        self._file = self._temporary = None
        self._new_folders = []
        sync_folder(self.path.parent)

    def abort(self) -> None:
        """Removes what was written and the folders made for it, unless the file is finished."""
        if self._temporary is None and self._file is None and not self._new_folders:
            return
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk would not take does not matter any more
                self._file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)
        self._file = self._temporary = None
        for folder in self._new_folders:
            with contextlib.suppress(OSError):  # others may use it by now
                folder.rmdir()
        self._new_folders = []

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _padded(nbytes: int) -> int:
    return (nbytes + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def _check_name(name: str, max_bytes: int, kind: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise UsageError(f"{kind} {name!r} is not UTF-8") from error
    if not 1 <= size <= max_bytes:
        raise UsageError(f"{kind} {name[:80]!r} has {size} bytes; 1 to {max_bytes} are allowed")


def _write_error(path: Path, error: OSError) -> BitqwenError:
    message = f"cannot write {path}: {error.strerror}"
    if error.errno in _DISK_FULL:
        return ResourceError(message, hint="Free some space or write to another disk.")
    return ModelFileError(message, hint="Check the folder and its permissions, or choose another.")
