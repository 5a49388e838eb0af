"""Small text files of a checkpoint, read with a bound on their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitqwen.errors import ModelFileError

_MAX_BYTES = 64 << 20  # Qwen2.5's largest, tokenizer.json, has 7 MB
_HINT = "Fetch the checkpoint again."


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        ModelFileError: missing, not a regular file, too large, or not UTF-8.
    """
    try:
        if not path.is_file():
            raise ModelFileError(f"{path} is missing or not a file", hint=_HINT)
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ModelFileError(f"{path} has {size} bytes; at most {_MAX_BYTES} are read", hint=_HINT)
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not UTF-8 text ({error})", hint=_HINT) from error
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelFileError: as :func:`read_text`, or not a JSON object.
    """
    try:
        document = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON: {error}", hint=_HINT) from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path} is not a JSON object", hint=_HINT)
    return document
