"""Items of a task from a JSONL file: one JSON object a line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from bitqwen.errors import ModelFileError

_MAX_LINE_BYTES = 4 << 20
_MAX_FILE_BYTES = 512 << 20
_MAX_ITEMS = 100_000
_ID_FIELDS = ("id", "task_id", "idx", "ind")


@dataclass(frozen=True)
class Item:
    """One object of a JSONL file.

    Attributes:
        id: its own, or ``line N``.
        where: the file and the line, for messages.
        fields: the object.
    """

    id: str
    where: str
    fields: Mapping[str, Any]

    def first(self, names: tuple[str, ...]) -> tuple[str, Any]:
        """The first of several fields that the object has, with its name.

        Raises:
            ModelFileError: it has none of them.
        """
        for name in names:
            if self.fields.get(name) is not None:
                return name, self.fields[name]
        raise self.error(f"none of the fields {', '.join(names)}")

    def text(self, *names: str) -> str:
        """The first of several fields that the object has, which must be text.

        Raises:
            ModelFileError: it has none of them, or it is no text.
        """
        name, value = self.first(names)
        if not isinstance(value, str):
            raise self.error(f"a field {name} that is no text")
        return value

    def error(self, what: str) -> ModelFileError:
        """An error that says what is wrong with the item."""
        return ModelFileError(f"{self.where} has {what}.", hint="See `bitqwen eval --help` for the fields.")


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """The objects of a JSONL file, which may be gzipped.

    Args:
        path: the file.
        limit: read only the first ones; ``None`` for all.

    Raises:
        ModelFileError: it cannot be read, is too large, has a line that is no JSON object, two items with
            one id, or none at all.
    """
    items: list[Item] = []
    ids: set[str] = set()
    try:
        for number, line in _lines(path):
            if limit is not None and len(items) >= limit:
                break
            item = _item(path, number, line)
            if item.id in ids:
                raise item.error(f"the id {item.id!r} of an earlier line")
            if len(items) == _MAX_ITEMS:
                raise ModelFileError(f"{path} has more than {_MAX_ITEMS} items.")
            ids.add(item.id)
            items.append(item)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"Cannot read {path}: {reason}.") from error
    if not items:
        raise ModelFileError(f"{path} has no items.")
    return items


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers; what gzip unpacks is bounded as well."""
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
        left = _MAX_FILE_BYTES
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            left -= len(line)
            if len(line) > _MAX_LINE_BYTES or left < 0:
                raise ModelFileError(f"{path} is too large at line {number}.")
            if line.strip():
                yield number, line


def _item(path: Path, number: int, line: bytes) -> Item:
    where = f"{path}, line {number},"
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where} is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise ModelFileError(f"{where} is not a JSON object.")
    for name in _ID_FIELDS:
        if isinstance(fields.get(name), str | int):
            return Item(str(fields[name]), where, fields)
    return Item(f"line {number}", where, fields)
