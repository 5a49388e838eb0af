"""A saved reference: a model's predictions over some texts, to compare other models with later.

Of each scored token's distribution the file holds the likeliest tokens and a sample of the others; what
can be said from that is in :mod:`bitqwen.measure.truncation`. All numbers are little endian.

| offset | bytes | field                                                                        |
|--------|-------|------------------------------------------------------------------------------|
| 0      | 8     | magic: 89 ``bqref`` 0D 0A                                                    |
| 8      | 4     | version, uint32: 1                                                           |
| 12     | 4     | vocabulary V, uint32: distributions are over ids 0 to V - 1                  |
| 16     | 4     | context C, uint32: tokens of a chunk                                         |
| 20     | 4     | top T, uint32: likeliest tokens saved of each distribution                   |
| 24     | 4     | samples S, uint32: tokens drawn from the others                              |
| 28     | 4     | metadata's length M, uint32                                                  |
| 32     | M     | metadata, JSON in UTF-8 (below)                                              |
| 32 + M | 4     | CRC-32 of everything above, uint32                                           |
| 36 + M | ...   | chunks, text after text, to the end of the file                              |

A chunk has R = C - 1 - floor(C / 2) scored tokens, those after its middle:

| bytes                | field                                                                     |
|----------------------|---------------------------------------------------------------------------|
| 4 C                  | the chunk's token ids, uint32                                             |
| R x (16 + 8 (T + S)) | a row for each scored token: :func:`bitqwen.measure.truncation.row_type`  |
| 4                    | CRC-32 of the two fields above, uint32                                    |

The metadata is an object: ``texts``, a list of objects with ``name``, ``sha256`` (of the whole text in
UTF-8) and ``chunks`` (how many); ``model``, an object that says what the reference was. With the defaults,
T = S = 256, a scored token takes 4.1 kB.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bitqwen.errors import ModelFileError, UsageError

from .passages import MAX_CONTEXT, MIN_CONTEXT, Passage, scored_rows
from .truncation import row_type

MAGIC = b"\x89bqref\r\n"
VERSION = 1
DEFAULT_TOP = 256
DEFAULT_SAMPLES = 256

_HEADER = struct.Struct("<8s6I")
_MAX_METADATA = 1 << 20
_MAX_TEXTS = 1024
_MAX_NAME = 200
_MAX_ENTRIES = 1 << 16
_MAX_VOCABULARY = 1 << 24
_MAX_CHUNK_BYTES = 1 << 30
# Of the sum of a row's probabilities, each rounded to float32's precision of its logarithm.
_SUM_TOLERANCE = 1e-3
_DAMAGED = "The file is damaged: save the reference again."


@dataclass(frozen=True)
class SavedText:
    """A text of a saved reference: its name, its SHA-256 and how many chunks of it were scored."""

    name: str
    sha256: str
    chunks: int


@dataclass(frozen=True)
class ReferenceLayout:
    """What a saved reference's header says.

    Attributes:
        vocab_size: distributions are over ids below it.
        context: tokens of a chunk.
        top: likeliest tokens saved of each distribution.
        samples: tokens drawn from the others.
        texts: in the file's order.
        model: what the reference was.
    """

    vocab_size: int
    context: int
    top: int
    samples: int
    texts: tuple[SavedText, ...]
    model: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Scored tokens of a chunk."""
        return scored_rows(self.context)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a chunk in the file."""
        return 4 * self.context + self.rows * (16 + 8 * (self.top + self.samples)) + 4

    def check(self) -> str:
        """What is wrong with it; nothing if it is right."""
        for name, value, low, high in (
            ("vocabulary", self.vocab_size, 2, _MAX_VOCABULARY),
            ("context", self.context, MIN_CONTEXT, MAX_CONTEXT),
            ("top", self.top, 1, min(_MAX_ENTRIES, self.vocab_size)),
            ("samples", self.samples, 0, _MAX_ENTRIES),
            ("number of texts", len(self.texts), 1, _MAX_TEXTS),
            ("size of a chunk in bytes", self.chunk_bytes, 0, _MAX_CHUNK_BYTES),
        ):
            if not low <= value <= high:
                return f"its {name} is {value}; allowed: {low} to {high}"
        return ""


@dataclass(frozen=True)
class SavedChunk:
    """A chunk of a saved reference: token ids, int64 [context], and rows of ``row_type``, [rows]."""

    tokens: npt.NDArray[np.int64]
    rows: npt.NDArray[Any]


def is_reference(path: str | PathLike[str]) -> bool:
    """Whether a path is a file that begins like a saved reference."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def layout_for(
    passages: Sequence[Passage],
    model: Mapping[str, Any],
    *,
    top: int = DEFAULT_TOP,
    samples: int = DEFAULT_SAMPLES,
) -> ReferenceLayout:
    """The layout of a reference over passages of one context and one tokenizer.

    Raises:
        UsageError: the passages differ in that, or there are none, or a number is out of range.
    """
    if len({(passage.context, passage.vocab_size) for passage in passages}) != 1:
        raise UsageError("A saved reference holds texts of one context and one tokenizer, at least one.")
    vocab_size = passages[0].vocab_size
    layout = ReferenceLayout(
        vocab_size=vocab_size,
        context=passages[0].context,
        top=min(top, vocab_size),
        samples=samples,
        texts=tuple(SavedText(each.name, each.sha256, len(each.chunks)) for each in passages),
        model=dict(model),
    )
    if wrong := layout.check():
        raise UsageError(f"No reference can be saved like this: {wrong}.")
    return layout


def write_header(file: BinaryIO, layout: ReferenceLayout) -> None:
    """Writes everything before the chunks.

    Raises:
        OSError: it cannot be written.
        UsageError: the metadata is too long.
    """
    texts = [vars(text) for text in layout.texts]
    metadata = json.dumps({"model": layout.model, "texts": texts}, ensure_ascii=False).encode()
    if len(metadata) > _MAX_METADATA:
        raise UsageError(f"The reference's metadata has {len(metadata)} bytes; allowed: {_MAX_METADATA}.")
    numbers = (VERSION, layout.vocab_size, layout.context, layout.top, layout.samples, len(metadata))
    data = _HEADER.pack(MAGIC, *numbers) + metadata
    file.write(data + struct.pack("<I", zlib.crc32(data)))


def write_chunk(file: BinaryIO, tokens: npt.NDArray[np.int64], rows: npt.NDArray[Any]) -> None:
    """Writes a chunk: token ids [context], and its truncated rows [rows].

    Raises:
        OSError: it cannot be written.
    """
    data = tokens.astype("<u4").tobytes() + rows.tobytes()
    file.write(data + struct.pack("<I", zlib.crc32(data)))


class ReferenceFile:
    """A saved reference, open for reading; nothing in it is believed before it is checked.

    Attributes:
        path: the file.
        layout: what its header says.

    Args:
        path: the file.

    Raises:
        ModelFileError: it cannot be read, is no saved reference, or is damaged.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise ModelFileError(f"Cannot read {self.path}: {error.strerror}.") from error
        self._file: BinaryIO = file
        try:
            self.layout = self._read_header()
        except BaseException:
            file.close()
            raise

    def passages(self) -> list[Passage]:
        """The texts, as token ids.

        Raises:
            ModelFileError: the file is damaged.
        """
        found = []
        first = 0
        for text in self.layout.texts:
            chunks = [self.chunk(first + i).tokens for i in range(text.chunks)]
            found.append(Passage(text.name, text.sha256, np.stack(chunks), self.layout.vocab_size))
            first += text.chunks
        return found

    def chunk(self, index: int) -> SavedChunk:
        """Reads a chunk, counted over all texts.

        Raises:
            ModelFileError: the file is damaged.
        """
        layout = self.layout
        data = self._read_at(self._start + index * layout.chunk_bytes, layout.chunk_bytes)
        body, (crc,) = memoryview(data)[:-4], struct.unpack("<I", data[-4:])
        if zlib.crc32(body) != crc:
            raise self._error(f"chunk {index + 1} does not fit its checksum")
        tokens = np.frombuffer(body, "<u4", layout.context).astype(np.int64)
        rows = np.frombuffer(
            body, row_type(layout.top, layout.samples), layout.rows, offset=4 * layout.context
        )
        if wrong := _wrong_chunk(tokens, rows, layout.vocab_size):
            raise self._error(f"chunk {index + 1} has {wrong}")
        return SavedChunk(tokens, rows)

    def chunks(self, text: int) -> Iterator[SavedChunk]:
        """The chunks of a text, by its place in the layout.

        Raises:
            ModelFileError: the file is damaged.
        """
        first = sum(each.chunks for each in self.layout.texts[:text])
        for i in range(self.layout.texts[text].chunks):
            yield self.chunk(first + i)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> ReferenceFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_header(self) -> ReferenceLayout:
        size = os.fstat(self._file.fileno()).st_size
        if size < _HEADER.size:
            raise self._error("it is too short")
        magic, version, vocab_size, context, top, samples, length = _HEADER.unpack(
            self._read_at(0, _HEADER.size)
        )
        if magic != MAGIC:
            raise ModelFileError(
                f"{self.path} is no saved reference.", hint="Make one with `bitqwen eval --save-reference`."
            )
        if version != VERSION:
            raise ModelFileError(
                f"{self.path} is a saved reference of version {version}; this bitqwen reads {VERSION}."
            )
        if length > min(_MAX_METADATA, size - _HEADER.size):
            raise self._error(f"its metadata would have {length} bytes")
        header = self._read_at(0, _HEADER.size + length)
        if zlib.crc32(header) != struct.unpack("<I", self._read_at(len(header), 4))[0]:
            raise self._error("its header does not fit its checksum")
        texts, model = self._metadata(header[_HEADER.size :])
        layout = ReferenceLayout(vocab_size, context, top, samples, texts, model)
        if wrong := layout.check():
            raise self._error(wrong)
        self._start = len(header) + 4
        expected = self._start + layout.chunk_bytes * sum(text.chunks for text in texts)
        if size != expected:
            raise self._error(f"it has {size} bytes; its header says {expected}")
        return layout

    def _metadata(self, data: bytes) -> tuple[tuple[SavedText, ...], Mapping[str, Any]]:
        try:
            document = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            raise self._error("its metadata is not JSON") from error
        listed = document.get("texts") if isinstance(document, dict) else None
        if not isinstance(listed, list) or len(listed) > _MAX_TEXTS:
            raise self._error("its metadata names no texts, or too many")
        model = document.get("model")
        if not isinstance(model, dict):
            raise self._error("its metadata does not say what the model was")
        texts = []
        for entry in listed:
            match entry:
                case {"name": str(name), "sha256": str(sha256), "chunks": int(chunks)} if (
                    chunks >= 1 and not isinstance(chunks, bool) and _is_name(name) and _is_name(sha256)
                ):
                    texts.append(SavedText(name, sha256, chunks))
                case _:
                    raise self._error("its metadata describes a text wrongly")
        return tuple(texts), model

    def _read_at(self, offset: int, count: int) -> bytes:
        try:
            self._file.seek(offset, io.SEEK_SET)
            data = self._file.read(count)
        except (OSError, OverflowError) as error:
            raise ModelFileError(f"Cannot read {self.path}: {error}.") from error
        if len(data) != count:
            raise self._error("it ends too early")
        return data

    def _error(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self.path} cannot be used as a reference: {what}.", hint=_DAMAGED)


def _is_name(text: str) -> bool:
    """Whether a text can be shown: nothing that a terminal would obey."""
    return text.isprintable() and 1 <= len(text) <= _MAX_NAME


def _wrong_chunk(tokens: npt.NDArray[np.int64], rows: npt.NDArray[Any], vocab_size: int) -> str:
    """What a chunk has that no reference writes; nothing if it is right."""
    top, sample = rows["top"], rows["sample"]
    if max(ids.max(initial=0) for ids in (tokens, top["id"], sample["id"])) >= vocab_size:
        return "a token beyond the vocabulary"
    for logprobs in (rows["target"], top["logprob"], sample["logprob"]):
        # Greater than 0 only by rounding; the comparison is false for NaN as well.
        if not (np.isfinite(logprobs) & (logprobs <= 1e-5)).all():
            return "a log-probability that is none"
    if (np.diff(top["logprob"], axis=1) > 0).any():
        return "a top that does not fall"
    if (np.diff(np.sort(top["id"], axis=1), axis=1) == 0).any():
        return "a token twice in a top"
    tail = rows["tail"]
    if not ((tail >= 0) & (tail <= 1)).all():
        return "a mass that is none"
    total = np.exp(top["logprob"].astype(np.float64)).sum(axis=1) + tail
    if (np.abs(total - 1) > _SUM_TOLERANCE).any():
        return "probabilities that do not sum to 1"
    return ""
