from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from bitqwen.errors import ModelFileError
from bitqwen.measure.tasks import items


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "items.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_objects_with_their_ids(tmp_path: Path) -> None:
    path = write(tmp_path, '{"id": "a", "x": 1}\n\n{"task_id": "T/2"}\n{"idx": 7}\n{"question": "naïve"}\n')
    found = items.read_items(path)
    assert [item.id for item in found] == ["a", "T/2", "7", "line 5"]
    assert found[3].text("prompt", "question") == "naïve"
    assert len(items.read_items(path, limit=2)) == 2


def test_gzip_is_recognised(tmp_path: Path) -> None:
    assert items.read_items(write(tmp_path, gzip.compress(b'{"id": 1}\n{"id": 2}')))[1].id == "2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "no items"),
        (b"\n \n", "no items"),
        (b"{", "line 1, is not JSON"),
        (b"[1]", "line 1, is not a JSON object"),
        (b'{"id": 1}\n"x"', "line 2, is not a JSON object"),
        (b'{"id": 1}\n{"id": "1"}', "the id '1' of an earlier line"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"id": "\xff"}', "is not JSON"),
        (b"\x1f\x8bgarbage", "Cannot read"),
        (gzip.compress(b'{"id": 1}')[:-4], "Cannot read"),
    ],
)
def test_files_that_are_no_items(tmp_path: Path, text: bytes, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        items.read_items(write(tmp_path, text))


def test_what_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "_MAX_LINE_BYTES", 1000)
    with pytest.raises(ModelFileError, match="too large at line 1"):
        items.read_items(write(tmp_path, gzip.compress(b'{"x": "' + b"a" * 1_000_000)))
    monkeypatch.setattr(items, "_MAX_FILE_BYTES", 5000)
    with pytest.raises(ModelFileError, match="too large at line"):
        items.read_items(write(tmp_path, gzip.compress(b"{}\n" * 2000)))
    monkeypatch.setattr(items, "_MAX_ITEMS", 3)
    with pytest.raises(ModelFileError, match="more than 3 items"):
        items.read_items(write(tmp_path, b"{}\n" * 4))


def test_missing_fields_are_named(tmp_path: Path) -> None:
    (item,) = items.read_items(write(tmp_path, '{"question": null, "answer": 3}'))
    with pytest.raises(ModelFileError, match="line 1, has none of the fields prompt, question"):
        item.text("prompt", "question")
    with pytest.raises(ModelFileError, match="a field answer that is no text"):
        item.text("answer")
    with pytest.raises(ModelFileError, match="Cannot read"):
        items.read_items(tmp_path / "none")
