"""A safetensors file, read one tensor at a time.

The ``safetensors`` package gives bfloat16 only through torch, which bitqwen does not need; the format is
a length, a JSON header and the bytes, and all of it is checked here before it is used. Tensors are read,
not mapped: a file that is cut while it is in use is then an error and not a crash.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen.errors import ModelFileError, UnsupportedModelError

_MAX_HEADER = 100_000_000  # the format's own limit
_MAX_DIMENSIONS = 8
_MAX_EXTENT = 1 << 48  # of a dimension or an offset
_READABLE = ("F32", "F16", "BF16")
# Bytes of a value. Other types (of less than a byte, or newer than this table) are listed and never read.
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
_PIECE = 1 << 20  # values converted at a time


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the end of the header
    end: int


class SafetensorsFile:
    """One ``.safetensors`` file.

    Raises:
        ModelFileError: the file cannot be read, is cut off, or is not what the format says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_file():  # a pipe or a device would wait or never end
                raise ModelFileError(f"{path} is missing or not a file", hint="Fetch the checkpoint again.")
            with path.open("rb") as file:
                self._state = _state(file)
                self.nbytes = self._state[-1]
                self._data_begin, header = self._read_header(file)
        except OSError as error:
            raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
        self._entries = {
            name: self._entry(name, value) for name, value in header.items() if name != "__metadata__"
        }
        self._refuse_gaps_and_overlaps()

    def _damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is damaged: {what}", hint="Fetch the checkpoint again.")

    def _read_header(self, file: BinaryIO) -> tuple[int, dict[str, Any]]:
        if self.nbytes < 8:
            raise self._damaged(f"{self.nbytes} bytes are no safetensors file")
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_MAX_HEADER, self.nbytes - 8):
            raise self._damaged(f"a header of {length} bytes in a file of {self.nbytes}")
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is not a JSON object")
        return 8 + length, header

    def _entry(self, name: str, value: Any) -> _Entry:
        try:
            dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise self._damaged(f"tensor {name!r} is not described as the format says") from error
        if not isinstance(dtype, str) or not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} is not described as the format says")
        if not all(type(n) is int and 0 <= n < _MAX_EXTENT for n in (*shape, begin, end)):
            raise self._damaged(f"tensor {name!r} has an impossible shape or offset")
        if not begin <= end <= self.nbytes - self._data_begin:
            raise self._damaged(
                f"tensor {name!r} lies at bytes {begin} to {end} of {self.nbytes - self._data_begin}"
            )
        item = ITEM_BYTES.get(dtype)
        if item is not None and math.prod(shape) * item != end - begin:
            raise self._damaged(f"tensor {name!r} of {dtype} {shape} has {end - begin} bytes")
        return _Entry(dtype, tuple(shape), begin, end)

    def _refuse_gaps_and_overlaps(self) -> None:
        position = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1][2:]):
            if entry.begin != position:
                what = "overlaps another" if entry.begin < position else "follows bytes of no tensor"
                raise self._damaged(f"tensor {name!r} {what}")
            position = entry.end
        if position != self.nbytes - self._data_begin:
            raise self._damaged(f"{self.nbytes - self._data_begin - position} bytes belong to no tensor")

    def names(self) -> list[str]:
        """Names of the file's tensors."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """A tensor's type as the format spells it."""
        return self._entries[name].dtype

    def read(self, name: str, begin: int = 0, end: int | None = None) -> npt.NDArray[np.float32]:
        """A tensor, or its rows [begin, end), as float32.

        Raises:
            UnsupportedModelError: a type other than F32, F16 and BF16.
            ModelFileError: the file was changed since it was opened.
        """
        entry = self._entries[name]
        if entry.dtype not in _READABLE:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} has type {entry.dtype}; {', '.join(_READABLE)} are supported",
                hint="A quantised checkpoint (GPTQ, AWQ, FP8 ...) cannot be read: convert its original.",
            )
        shape = entry.shape
        start = self._data_begin + entry.begin
        if begin or end is not None:
            begin, end, _ = slice(begin, end).indices(shape[0])
            shape = (max(0, end - begin), *shape[1:])
            start += begin * math.prod(shape[1:]) * ITEM_BYTES[entry.dtype]
        out = np.empty(shape, np.float32)
        try:
            with self.path.open("rb", buffering=0) as file:
                if _state(file) != self._state:
                    raise self._changed()
                file.seek(start)
                self._read_values(file, entry.dtype, out.reshape(-1))
        except OSError as error:
            raise ModelFileError(f"cannot read {self.path}: {error.strerror}") from error
        return out

    def _read_values(self, file: BinaryIO, dtype: str, out: npt.NDArray[np.float32]) -> None:
        """Fills ``out`` [n] with the file's next values, in pieces: no second copy of a tensor."""
        if dtype == "F32":
            self._read_exactly(file, out.view(np.uint8))
            return
        piece = np.empty(min(_PIECE, out.size), np.uint16)
        for begin in range(0, out.size, _PIECE):
            target = out[begin : begin + _PIECE]
            bits = piece[: target.size]
            self._read_exactly(file, bits.view(np.uint8))
            if dtype == "BF16":  # the upper half of a float32
                np.left_shift(bits, 16, out=target.view(np.uint32), dtype=np.uint32)
            else:
                target[:] = bits.view(np.float16)

    def _read_exactly(self, file: BinaryIO, out: npt.NDArray[np.uint8]) -> None:
        view = memoryview(out.data)
        while view:
            count = file.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise self._changed()
            view = view[count:]

    def _changed(self) -> ModelFileError:
        return ModelFileError(
            f"{self.path} was changed since it was opened", hint="Start again when nothing writes to it."
        )


def _state(file: BinaryIO) -> tuple[int, int, int, int]:
    """Which file it is and when it was written; its size comes last."""
    facts = os.fstat(file.fileno())
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values
