"""Messages of one and of several lines."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bitqwen.cli.line_input import LineInput
from bitqwen.errors import UsageError


def messages(text: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    lines = LineInput(None)
    found = []
    while (message := lines.read()) is not None:
        found.append(message)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("last line without newline", ["last line without newline"]),
        ("a\\\nb\\\nc\nd\n", ["a\nb\nc", "d"]),
        ("a\\\n", ["a"]),
        ('"""one line"""\nnext\n', ["one line", "next"]),
        ('"""\na\n\n  b\n"""\nnext\n', ["a\n\n  b", "next"]),
        ('"""a\nb"""\n', ["a\nb"]),
        ('  """\nindented\n"""\n', ["indented"]),
        ('"""never closed\nb\n', ["never closed\nb"]),
        ("", []),
        ("\n", [""]),
    ],
)
def test_messages(text: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert messages(text, monkeypatch) == expected


def test_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"na\xefve\nnext\n"), encoding="utf-8"))
    with pytest.raises(UsageError, match="UTF-8"):
        LineInput(None).read()
    monkeypatch.setattr("sys.stdin", io.StringIO("na\udcefve\n"))
    with pytest.raises(UsageError, match="UTF-8"):
        LineInput(None).read()


def test_without_a_terminal_there_is_no_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    lines = LineInput(tmp_path / "history")
    lines.read()
    lines.close()
    assert not (tmp_path / "history").exists()
