"""A safetensors file, read one tensor at a time.

The ``safetensors`` package gives bfloat16 only through torch, which bitqwen does not need; the format is
a length, a JSON header and the bytes, and all of it is checked here before it is used.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen.errors import ModelFileError, UnsupportedModelError

_MAX_HEADER = 100_000_000  # the format's own limit
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One ``.safetensors`` file, mapped read-only.

    Raises:
        ModelFileError: the file cannot be read, is cut off, or is not what the format says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelFileError(
                f"cannot read {path}: {error}", hint="Fetch the checkpoint again."
            ) from error
        self._data_begin, header = self._read_header()
        self._entries = {
            name: self._entry(name, value) for name, value in header.items() if name != "__metadata__"
        }
        self._refuse_overlaps()

    def _damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path} is damaged: {what}", hint="Fetch the checkpoint again.")

    def _read_header(self) -> tuple[int, dict[str, Any]]:
        if len(self._map) < 8:
            raise self._damaged(f"{len(self._map)} bytes are no safetensors file")
        (length,) = struct.unpack_from("<Q", self._map)
        if length > _MAX_HEADER or length > len(self._map) - 8:
            raise self._damaged(f"a header of {length} bytes in a file of {len(self._map)}")
        try:
            header = json.loads(self._map[8 : 8 + length])
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is not a JSON object")
        return 8 + length, header

    def _entry(self, name: str, value: Any) -> _Entry:
        try:
            dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
            whole = all(type(n) is int and 0 <= n < 2**48 for n in (*shape, begin, end))
        except (TypeError, KeyError, ValueError) as error:
            raise self._damaged(f"tensor {name!r} is not described as the format says") from error
        if not whole or begin > end or end > len(self._map) - self._data_begin:
            raise self._damaged(f"tensor {name!r} lies outside the file")
        if dtype in _ITEM_BYTES and math.prod(shape) * _ITEM_BYTES[dtype] != end - begin:
            raise self._damaged(f"tensor {name!r} of {dtype} {list(shape)} has {end - begin} bytes")
        return _Entry(dtype, shape, begin, end)

    def _refuse_overlaps(self) -> None:
        position = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].begin):
            if entry.begin < position:
                raise self._damaged(f"tensor {name!r} overlaps another")
            position = entry.end

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
        """A tensor, or rows [begin, end) of it, as float32.

        Raises:
            UnsupportedModelError: a type other than F32, F16 and BF16.
        """
        entry = self._entries[name]
        if entry.dtype not in _ITEM_BYTES:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} has type {entry.dtype}; F32, F16 and BF16 are supported",
                hint="Quantised checkpoints (GPTQ, AWQ, FP8) must be converted from their original.",
            )
        shape = entry.shape
        if begin or end is not None:
            begin, end, _ = slice(begin, end).indices(shape[0])
            shape = (max(0, end - begin), *shape[1:])
        row = math.prod(entry.shape[1:]) * _ITEM_BYTES[entry.dtype]
        start, count = self._data_begin + entry.begin + begin * row, math.prod(shape)
        if entry.dtype == "BF16":  # the upper half of a float32
            wide = np.frombuffer(self._map, np.dtype("<u2"), count, start).astype(np.uint32)
            wide <<= 16
            return wide.view(np.float32).reshape(shape)
        kind = np.dtype("<f4" if entry.dtype == "F32" else "<f2")
        return np.frombuffer(self._map, kind, count, start).astype(np.float32).reshape(shape)

    def release(self, name: str) -> None:
        """Lets the system drop the tensor's pages from this process."""
        entry = self._entries[name]
        page = mmap.PAGESIZE
        begin = (self._data_begin + entry.begin + page - 1) // page * page
        end = (self._data_begin + entry.end) // page * page
        if begin < end and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)
