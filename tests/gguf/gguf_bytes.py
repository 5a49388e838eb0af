"""GGUF files made by hand, byte by byte: also those that no writer would make; and a user without rights."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

UINT8, INT8, UINT32, FLOAT32, STRING, ARRAY = 0, 1, 4, 6, 8, 9


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def text_value(text: str) -> bytes:
    return struct.pack("<I", STRING) + string(text)


def uint32_value(number: int) -> bytes:
    return struct.pack("<II", UINT32, number)


class Tensor(NamedTuple):
    name: str | bytes
    shape: tuple[int, ...]  # rows first
    type_id: int
    offset: int


def gguf_bytes(
    metadata: dict[str | bytes, bytes] | list[tuple[str | bytes, bytes]] = (),
    tensors: list[Tensor] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    entries = list(metadata.items()) if isinstance(metadata, dict) else list(metadata)
    out = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if key_count is None else key_count,
    )
    for key, value in entries:
        out += string(key) + value
    for name, shape, type_id, offset in tensors:
        out += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        out += struct.pack("<IQ", type_id, offset)
    return out + bytes(-len(out) % alignment) + data


def sample() -> bytes:
    """A small well-formed file: every type of value, arrays of arrays, tensors of four types."""
    metadata: dict[str | bytes, bytes] = {
        "general.architecture": text_value("qwen2"),
        "u8": struct.pack("<IB", 0, 200),
        "i8": struct.pack("<Ib", 1, -100),
        "u16": struct.pack("<IH", 2, 60000),
        "i16": struct.pack("<Ih", 3, -30000),
        "u32": struct.pack("<II", 4, 4000000000),
        "i32": struct.pack("<Ii", 5, -2000000000),
        "f32": struct.pack("<If", 6, 0.5),
        "bool": struct.pack("<I?", 7, True),
        "u64": struct.pack("<IQ", 10, 2**64 - 1),
        "i64": struct.pack("<Iq", 11, -(2**62)),
        "f64": struct.pack("<Id", 12, 0.1),
        "tokens": struct.pack("<IIQ", ARRAY, STRING, 3) + string("a") + string("") + string("é"),
        "numbers": struct.pack("<IIQ3h", ARRAY, 3, 3, 1, -2, 3),
        "nested": struct.pack("<IIQ", ARRAY, ARRAY, 2)
        + struct.pack("<IQ2B", UINT8, 2, 1, 2)
        + struct.pack("<IQ", ARRAY, 1)
        + struct.pack("<IQ", STRING, 1)
        + string("deep"),
        "empty": struct.pack("<IIQ", ARRAY, FLOAT32, 0),
    }
    tensors = [
        Tensor("f32.weight", (2, 3), 0, 0),
        Tensor("q4_0.weight", (2, 32), 2, 32),
        Tensor("mxfp4.weight", (1, 32), 39, 96),
        Tensor("q2_0.weight", (64,), 42, 128),
    ]
    data = struct.pack("<6f", *range(6)).ljust(32, b"\0")
    data += bytes(range(36)).ljust(64, b"\0")
    data += bytes(17).ljust(32, b"\0")
    data += struct.pack("<e", 1.0) + b"\xe4" * 16
    return gguf_bytes(metadata, tensors, data)


SAMPLE_METADATA = {
    "general.architecture": "qwen2",
    "u8": 200,
    "i8": -100,
    "u16": 60000,
    "i16": -30000,
    "u32": 4000000000,
    "i32": -2000000000,
    "f32": 0.5,
    "bool": True,
    "u64": 2**64 - 1,
    "i64": -(2**62),
    "f64": 0.1,
    "tokens": ["a", "", "é"],
    "numbers": [1, -2, 3],
    "nested": [[1, 2], [["deep"]]],
    "empty": [],
}


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Gives up root's right to read and write everything, if there is one."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
