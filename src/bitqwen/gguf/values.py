"""Metadata values as the bytes that GGUF stores."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitqwen.errors import UsageError

from .types import ValueType

_CODES = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
_DTYPES = {np.dtype(code): kind for kind, code in _CODES.items()}
_WHOLE_NUMBERS = set(_CODES) - {ValueType.FLOAT32, ValueType.FLOAT64, ValueType.BOOL}
# What a Python integer becomes: the first that holds it. Token types are signed 32 bits everywhere.
_SCALAR_INTEGERS = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)
_ARRAY_INTEGERS = (ValueType.INT32, ValueType.UINT32, ValueType.INT64, ValueType.UINT64)


def encode_value(key: str, value: Any, value_type: ValueType | None = None) -> bytes:
    """The type and bytes of one metadata value.

    Args:
        key: the value's key, for messages.
        value: a bool, int, float or str; a list or tuple of one of these; or a one-dimensional numpy array.
        value_type: the type to store, of an array's elements if the value is an array. By default a numpy
            array keeps its own, an int takes 32 bits where they suffice, and a float takes 32 bits.

    Raises:
        UsageError: GGUF has no type for the value, or the type does not hold it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        return _numpy_array(key, value, value_type)
    if isinstance(value, (list, tuple)):
        value = [item.item() if isinstance(item, np.generic) else item for item in value]
        kind = _common_type(key, value) if value_type is None else value_type
        return struct.pack("<IIQ", ValueType.ARRAY, kind, len(value)) + _pack(key, value, kind)
    kind = _type_of(key, value, _SCALAR_INTEGERS) if value_type is None else value_type
    return struct.pack("<I", kind) + _pack(key, [value], kind)


def encode_string(text: str) -> bytes:
    """A string as GGUF stores it: its length in 64 bits, then UTF-8.

    Raises:
        UnicodeEncodeError: the text has a surrogate, which UTF-8 cannot hold.
    """
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _numpy_array(key: str, array: np.ndarray[Any, Any], value_type: ValueType | None) -> bytes:
    if array.ndim != 1 or array.dtype.newbyteorder("=") not in _DTYPES:
        raise UsageError(
            f"metadata {key!r}: a numpy array of {array.ndim} dimensions and type {array.dtype} was given",
            hint="Allowed: one dimension; integers of 8 to 64 bits, float32, float64 or bool.",
        )
    if value_type is not None:
        return encode_value(key, array.tolist(), value_type)
    kind = _DTYPES[array.dtype.newbyteorder("=")]
    data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return struct.pack("<IIQ", ValueType.ARRAY, kind, len(array)) + data


def _type_of(key: str, value: Any, integers: Sequence[ValueType]) -> ValueType:
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, int):
        return next((kind for kind in integers if _holds(kind, value)), integers[-1])
    if isinstance(value, float):
        return ValueType.FLOAT32
    if isinstance(value, str):
        return ValueType.STRING
    raise UsageError(
        f"metadata {key!r}: a value of type {type(value).__name__} was given",
        hint="Allowed: bool, int, float, str, lists of one of these, and numpy arrays of numbers.",
    )


def _common_type(key: str, values: Sequence[Any]) -> ValueType:
    """The type of a list's elements; an empty list counts as one of strings."""
    if all(isinstance(value, str) for value in values):
        return ValueType.STRING
    kinds = {_type_of(key, value, _ARRAY_INTEGERS[:1]) for value in values}
    if kinds == {ValueType.INT32}:
        low, high = min(values), max(values)
        held = (kind for kind in _ARRAY_INTEGERS if _holds(kind, low) and _holds(kind, high))
        return next(held, _ARRAY_INTEGERS[-1])
    if kinds == {ValueType.INT32, ValueType.FLOAT32}:
        return ValueType.FLOAT32
    if len(kinds) > 1:
        raise UsageError(f"metadata {key!r}: a list must hold only strings, only booleans or only numbers")
    return kinds.pop()


def _holds(kind: ValueType, value: int) -> bool:
    bits = 8 * struct.calcsize(f"<{_CODES[kind]}")
    if _CODES[kind].isupper():
        return 0 <= value < 1 << bits
    return -(1 << bits - 1) <= value < 1 << bits - 1


def _pack(key: str, values: Sequence[Any], kind: ValueType) -> bytes:
    try:
        if kind == ValueType.STRING:
            return _strings(values)
        if kind in _WHOLE_NUMBERS and any(isinstance(value, bool) for value in values):
            raise UsageError(f"metadata {key!r}: a boolean was given as {kind.name}")
        if kind == ValueType.BOOL and not all(isinstance(value, bool) for value in values):
            raise UsageError(f"metadata {key!r}: something else than a boolean was given as BOOL")
        return struct.pack(f"<{len(values)}{_CODES[kind]}", *values)
    except (struct.error, OverflowError) as error:
        raise UsageError(f"metadata {key!r}: {kind.name} does not hold the value: {error}") from error
    except UnicodeEncodeError as error:
        raise UsageError(
            f"metadata {key!r}: {error.object[:40]!r} has a surrogate, which UTF-8 cannot hold",
            hint="Give text whose characters are whole.",
        ) from error
    except (KeyError, AttributeError) as error:
        raise UsageError(f"metadata {key!r}: the value cannot be stored as {kind.name}") from error


def _strings(values: Sequence[str]) -> bytes:
    data = [value.encode() for value in values]
    lengths = np.fromiter(map(len, data), "<u8", len(data)).tobytes()
    parts = [b""] * (2 * len(data))
    parts[::2] = [lengths[at : at + 8] for at in range(0, len(lengths), 8)]
    parts[1::2] = data
    return b"".join(parts)
