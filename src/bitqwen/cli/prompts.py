"""Where a prompt comes from: an option, a file, or standard input."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bitqwen.errors import ModelFileError, UsageError

# More text than any context holds; a terminal that pipes /dev/zero must not fill the memory.
_MAX_BYTES = 64 << 20


def read(prompt: str | None, file: Path | None) -> str:
    """The prompt's text.

    Raises:
        UsageError: no prompt, two prompts, an empty one, or text that is not UTF-8.
        ModelFileError: the file cannot be read.
    """
    if prompt is not None and file is not None:
        raise UsageError("Both --prompt and --file were given.", hint="Give one of them.")
    if prompt is not None:
        # Python keeps wrong bytes of an argument as lone surrogates.
        return _not_empty(_decode(os.fsencode(prompt), "--prompt"), "--prompt")
    if file is not None and str(file) != "-":
        return _not_empty(_decode(_read_file(file), str(file)), str(file))
    if file is None and sys.stdin.isatty():
        raise UsageError(
            "No prompt was given.",
            hint="Give one with -p TEXT or -f FILE, pipe one in, or use `bitqwen chat` to talk.",
        )
    return _not_empty(_decode(sys.stdin.buffer.read(_MAX_BYTES + 1), "standard input"), "standard input")


def _read_file(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"Cannot read the prompt from {file}: {error.strerror}.") from error


def _decode(data: bytes, name: str) -> str:
    if len(data) > _MAX_BYTES:
        raise UsageError(f"The prompt from {name} is longer than {_MAX_BYTES >> 20} MiB.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"The prompt from {name} is not UTF-8: byte {data[error.start]:#04x} at position {error.start}.",
            hint="Convert it first, for example with: iconv -f LATIN1 -t UTF-8",
        ) from error
    # The newline that ends a file or an echo is no part of the question.
    return text.removesuffix("\n").removesuffix("\r")


def _not_empty(text: str, name: str) -> str:
    if not text.strip():
        raise UsageError(f"The prompt from {name} is empty.", hint="Give it some text.")
    return text
