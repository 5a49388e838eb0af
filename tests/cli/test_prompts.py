"""Where a prompt comes from, and which are refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from bitqwen.cli import prompts
from bitqwen.errors import ModelFileError, UsageError


class Stdin(io.TextIOWrapper):
    """Standard input with these bytes, on a terminal or not."""

    def __init__(self, data: bytes, *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def test_option() -> None:
    assert prompts.read("Why?\n\n", None) == "Why?\n"


def test_file_loses_its_last_newline_and_its_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfline one\r\nline two\r\n")
    assert prompts.read(None, file) == "line one\r\nline two"


@pytest.mark.parametrize("file", [None, Path("-")])
def test_pipe(file: Path | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Stdin("Grüße 👋\n".encode()))
    assert prompts.read(None, file) == "Grüße 👋"


def test_two_prompts() -> None:
    with pytest.raises(UsageError, match="Both"):
        prompts.read("a", Path("b"))


def test_no_prompt_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(b"", terminal=True))
    with pytest.raises(UsageError, match="No prompt") as caught:
        prompts.read(None, None)
    assert "bitqwen chat" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"\n", b"  \n\t"])
def test_empty(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Stdin(data))
    with pytest.raises(UsageError, match="empty"):
        prompts.read(None, None)
    with pytest.raises(UsageError, match="empty"):
        prompts.read(data.decode(), None)


def test_not_utf8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = "naïve".encode("latin1")
    monkeypatch.setattr("sys.stdin", Stdin(data))
    with pytest.raises(UsageError, match="byte 0xef at position 2") as caught:
        prompts.read(None, None)
    assert "iconv" in caught.value.hint
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(UsageError, match="not UTF-8"):
        prompts.read(None, tmp_path / "p")
    with pytest.raises(UsageError, match="not UTF-8"):
        prompts.read("na\udcefve", None)  # how an argument with a wrong byte arrives


def test_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "_MAX_BYTES", 10)
    monkeypatch.setattr("sys.stdin", Stdin(b"x" * 1000))
    with pytest.raises(UsageError, match="longer than"):
        prompts.read(None, None)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        prompts.read(None, tmp_path / "nothing")
