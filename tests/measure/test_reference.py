"""The saved reference's format, byte by byte, and files that somebody made to do harm."""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import TableModel, log_softmax
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitqwen.errors import BitqwenError, ModelFileError, UsageError
from bitqwen.measure import reference
from bitqwen.measure.evaluation import save_reference
from bitqwen.measure.passages import Passage
from bitqwen.measure.reference import ReferenceFile, is_reference

CONTEXT, VOCAB, TOP, SAMPLES = 10, 31, 4, 3
ROW = 16 + 8 * (TOP + SAMPLES)
CHUNK = 4 * CONTEXT + 4 * ROW + 4
MODEL = TableModel(VOCAB)


def texts() -> list[Passage]:
    ids = np.random.default_rng(1).integers(0, VOCAB, (3, CONTEXT))
    return [Passage("prose", "a" * 64, ids[:2], VOCAB), Passage("code", "b" * 64, ids[2:], VOCAB)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("reference") / "good"
    save_reference(MODEL, texts(), path, about={"name": "tiny"}, top=TOP, samples=SAMPLES)
    return path.read_bytes()


def read_all(path: Path) -> None:
    with ReferenceFile(path) as file:
        file.passages()


def test_every_byte_is_where_the_table_says(good: bytes) -> None:
    """Read again with struct alone."""
    assert good[:8] == b"\x89bqref\r\n"
    assert struct.unpack_from("<5I", good, 8) == (1, VOCAB, CONTEXT, TOP, SAMPLES)
    (length,) = struct.unpack_from("<I", good, 28)
    assert json.loads(good[32 : 32 + length]) == {
        "model": {"name": "tiny"},
        "texts": [
            {"name": "prose", "sha256": "a" * 64, "chunks": 2},
            {"name": "code", "sha256": "b" * 64, "chunks": 1},
        ],
    }
    start = 36 + length
    assert struct.unpack_from("<I", good, 32 + length) == (zlib.crc32(good[: 32 + length]),)
    assert len(good) == start + 3 * CHUNK
    all_chunks = np.concatenate([text.chunks for text in texts()])
    for number, ids in enumerate(all_chunks.tolist()):
        chunk = good[start + number * CHUNK : start + (number + 1) * CHUNK]
        assert list(struct.unpack_from(f"<{CONTEXT}I", chunk)) == ids
        assert struct.unpack_from("<I", chunk, CHUNK - 4) == (zlib.crc32(chunk[:-4]),)
        logprobs = log_softmax(MODEL.logits(ids)).astype(float)[5:-1]
        for i, row in enumerate(logprobs):
            at = 4 * CONTEXT + i * ROW
            tail, target, zero = struct.unpack_from("<dfI", chunk, at)
            entries = list(struct.iter_unpack("<If", chunk[at + 16 : at + ROW]))
            best = np.argsort(-row)[:TOP].tolist()
            assert [token for token, _ in entries[:TOP]] == best
            assert [value for _, value in entries] == pytest.approx([row[t] for t, _ in entries], rel=1e-6)
            assert target == pytest.approx(row[ids[6 + i]], rel=1e-6)
            assert tail == pytest.approx(1 - np.exp(row[best]).sum(), abs=1e-9)
            assert zero == 0
            assert not {token for token, _ in entries[TOP:]} & set(best)


def sealed(data: bytes) -> bytes:
    """The file with a checksum that fits its header, whatever that says."""
    (length,) = struct.unpack_from("<I", data, 28)
    end = min(32 + length, len(data))
    return data[:end] + struct.pack("<I", zlib.crc32(data[:end])) + data[end + 4 :]


def test_it_is_known_by_its_beginning(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    assert not is_reference(path)
    assert not is_reference(tmp_path)
    path.write_bytes(good)
    assert is_reference(path)
    path.write_bytes(b"GGUF" + good)
    assert not is_reference(path)


def test_reading(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "reference"
    path.write_bytes(good)
    with ReferenceFile(path) as file:
        for found, expected in zip(file.passages(), texts(), strict=True):
            assert (found.name, found.sha256, found.vocab_size) == (
                expected.name,
                expected.sha256,
                expected.vocab_size,
            )
            np.testing.assert_array_equal(found.chunks, expected.chunks)
        assert [chunk.tokens.tolist() for chunk in file.chunks(1)] == texts()[1].chunks.tolist()


def test_missing_files_and_others(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="Cannot read"):
        ReferenceFile(tmp_path / "none")
    with pytest.raises(ModelFileError, match="Cannot read"):
        ReferenceFile(tmp_path)
    (tmp_path / "x").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelFileError, match="no saved reference"):
        ReferenceFile(tmp_path / "x")


def test_every_shorter_or_longer_file_is_refused(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "reference"
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(ModelFileError):
            ReferenceFile(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(ModelFileError, match="its header says"):
        ReferenceFile(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damaged_byte_goes_unnoticed(good: bytes, tmp_path: Path, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "reference"
    path.write_bytes(bytes(bad))
    with pytest.raises(ModelFileError):
        read_all(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8))
def test_whatever_the_header_holds_the_error_is_one_of_ours(
    good: bytes, tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    bad = bytearray(good)
    for at, value in changes:
        bad[at] = value
    path = tmp_path / "reference"
    path.write_bytes(sealed(bytes(bad)))
    with contextlib.suppress(BitqwenError):
        read_all(path)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (8, 2, "version 2"),
        (12, 0, "vocabulary is 0"),
        (12, 0xFFFFFFFF, "vocabulary is"),
        (16, 0, "context is 0"),
        (16, 0xFFFFFFFF, "context is"),
        (20, 0, "top is 0"),
        (20, VOCAB + 1, "top is 32; allowed: 1 to 31"),
        (24, 0xFFFFFFFF, "samples is"),
        (28, 0xFFFFFFFF, "metadata would have"),
    ],
)
def test_numbers_out_of_bounds(good: bytes, tmp_path: Path, place: int, value: int, words: str) -> None:
    bad = bytearray(good)
    struct.pack_into("<I", bad, place, value)
    (tmp_path / "reference").write_bytes(sealed(bytes(bad)))
    with pytest.raises(ModelFileError, match=words):
        ReferenceFile(tmp_path / "reference")


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"[" * 100_000,
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"model": {}, "texts": 3}',
        b'{"model": [], "texts": [{"name": "x", "sha256": "y", "chunks": 1}]}',
        b'{"model": {}, "texts": []}',
        b'{"model": {}, "texts": [3]}',
        b'{"model": {}, "texts": [{"name": "x", "sha256": "y", "chunks": -1}]}',
        b'{"model": {}, "texts": [{"name": "x", "sha256": "y", "chunks": true}]}',
        b'{"model": {}, "texts": [{"name": "x", "sha256": "y", "chunks": 1e3}]}',
        b'{"model": {}, "texts": [{"name": "x", "sha256": "y", "chunks": 99999999999999999999999}]}',
        b'{"model": {}, "texts": [{"name": "\\u001b[2J", "sha256": "y", "chunks": 3}]}',
        b'{"model": {}, "texts": [{"name": "x", "chunks": 3}]}',
    ],
)
def test_metadata_of_all_kinds(good: bytes, tmp_path: Path, metadata: bytes) -> None:
    (length,) = struct.unpack_from("<I", good, 28)
    bad = good[:28] + struct.pack("<I", len(metadata)) + metadata + good[32 + length :]
    (tmp_path / "reference").write_bytes(sealed(bad))
    with pytest.raises(ModelFileError, match=r"metadata|number of texts|its header says"):
        read_all(tmp_path / "reference")


def with_row(good: bytes, change: Callable[[np.ndarray[Any, Any]], None]) -> bytes:
    """The file with its first chunk's rows changed, and the checksum that fits."""
    (length,) = struct.unpack_from("<I", good, 28)
    start = 36 + length
    chunk = bytearray(good[start : start + CHUNK - 4])
    rows = np.frombuffer(chunk, reference.row_type(TOP, SAMPLES), 4, 4 * CONTEXT)
    change(rows)
    return good[:start] + chunk + struct.pack("<I", zlib.crc32(chunk)) + good[start + CHUNK :]


def _set(path: str, value: float) -> Callable[[np.ndarray[Any, Any]], None]:
    def change(rows: np.ndarray[Any, Any]) -> None:
        field, _, inner = path.partition(".")
        if inner:
            rows[field][inner][1, 2] = value
        else:
            rows[field][1] = value

    return change


def _twice(rows: np.ndarray[Any, Any]) -> None:
    rows["top"]["id"][2, 1] = rows["top"]["id"][2, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("tail", np.nan), "a mass that is none"),
        (_set("tail", -0.1), "a mass that is none"),
        (_set("tail", 2.0), "a mass that is none"),
        (_set("tail", 0.99), "do not sum to 1"),
        (_set("target", np.nan), "a log-probability that is none"),
        (_set("target", 1.0), "a log-probability that is none"),
        (_set("target", -np.inf), "a log-probability that is none"),
        (_set("top.id", VOCAB), "beyond the vocabulary"),
        (_set("top.logprob", 0.5), "a log-probability that is none"),
        (_set("top.logprob", -90.0), "a top that does not fall"),
        (_set("sample.id", 0xFFFFFFFF), "beyond the vocabulary"),
        (_set("sample.logprob", np.inf), "a log-probability that is none"),
        (_twice, "a token twice"),
    ],
)
def test_rows_that_no_reference_writes(
    good: bytes, tmp_path: Path, change: Callable[[np.ndarray[Any, Any]], None], words: str
) -> None:
    (tmp_path / "reference").write_bytes(with_row(good, change))
    with pytest.raises(ModelFileError, match=words):
        read_all(tmp_path / "reference")


def test_the_helper_of_the_test_above_changes_nothing_else(good: bytes, tmp_path: Path) -> None:
    assert with_row(good, lambda rows: None) == good


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    one, two = texts()
    shorter = Passage("code", "b" * 64, two.chunks[:, :8], VOCAB)
    for passages, options, words in (
        ([], {}, "at least one"),
        ([one, shorter], {}, "one context"),
        ([one], {"top": 0}, "top is 0"),
        ([one], {"samples": 1 << 20}, "samples is"),
        ([one], {"about": {"note": "x" * (1 << 20)}}, "metadata"),
    ):
        with pytest.raises(UsageError, match=words):
            save_reference(MODEL, passages, tmp_path / "reference", **{"about": {}, **options})
    assert list(tmp_path.iterdir()) == []
