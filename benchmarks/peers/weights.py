"""Bytes of weights that decoding a token reads, of any GGUF file: types that only a peer knows too."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Layout:
    """What a GGUF header says of its tensors.

    Attributes:
        metadata: the section of keys and values as it stands in the file.
        pairs: how many those are.
        shapes: by tensor name, innermost dimension first, as the file has them.
        types: type ids.
        sizes: bytes of each tensor up to the next one, padding included.
        data: where the tensors begin in the file.
        offsets: of each tensor from there.
    """

    metadata: bytes
    pairs: int
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, int]
    sizes: dict[str, int]
    data: int
    offsets: dict[str, int]


def layout(path: Path) -> Layout:
    """Reads a GGUF header without asking what its types are.

    Raises:
        ValueError: not a GGUF file of version 2 or 3.
    """
    with path.open("rb") as file:
        magic, version, count, pairs = struct.unpack("<4sIQQ", file.read(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"{path} is not a GGUF file of version 2 or 3.")
        begin, alignment = file.tell(), 32
        for _ in range(pairs):
            key = _string(file)
            value = _skip(file, *struct.unpack("<I", file.read(4)))
            if key == "general.alignment" and isinstance(value, int):
                alignment = value
        end = file.tell()
        shapes, types, offsets = {}, {}, {}
        for _ in range(count):
            name = _string(file)
            (dimensions,) = struct.unpack("<I", file.read(4))
            shapes[name] = struct.unpack(f"<{dimensions}Q", file.read(8 * dimensions))
            types[name], offsets[name] = struct.unpack("<IQ", file.read(12))
        data = -(-file.tell() // alignment) * alignment
        file.seek(begin)
        metadata = file.read(end - begin)
    order = sorted(offsets, key=offsets.__getitem__)
    ends = [*(offsets[name] for name in order[1:]), path.stat().st_size - data]
    sizes = {name: stop - offsets[name] for name, stop in zip(order, ends, strict=True)}
    return Layout(metadata, pairs, shapes, types, sizes, data, offsets)


def bytes_per_token(path: Path) -> int:
    """All tensors but an embedding that is not the output head too: of that only a row is read."""
    sizes = layout(path).sizes
    tied = "output.weight" not in sizes
    return sum(size for name, size in sizes.items() if tied or name != "token_embd.weight")


def _string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length).decode("utf-8", "replace")


def _skip(file: BinaryIO, kind: int) -> object:
    """Goes past a value; returns it if it is a plain number."""
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, count = struct.unpack("<IQ", file.read(12))
        if inner in _SCALARS:
            file.seek(count * struct.calcsize(f"<{_SCALARS[inner]}"), 1)
        else:
            for _ in range(count):
                _skip(file, inner)
        return None
    if kind not in _SCALARS:
        raise ValueError(f"A metadata value of the unknown kind {kind}.")
    form = f"<{_SCALARS[kind]}"
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]
