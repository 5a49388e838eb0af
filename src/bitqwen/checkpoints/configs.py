"""A model's configuration alone, from wherever the model lies; weights are neither read nor fetched."""

from __future__ import annotations

import json
from os import PathLike, fsdecode
from pathlib import Path
from typing import Any

from bitqwen.errors import CheckpointError, ModelFileError

from .sources import is_hub_id, resolve

_LARGEST = 1 << 20  # bytes of a config.json; real ones have one or two thousand


def read_config_file(path: Path) -> dict[str, Any]:
    """A ``config.json``.

    Raises:
        ModelFileError: it cannot be read, or is far too large.
        CheckpointError: it is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}.") from error
    if len(data) > _LARGEST:
        raise ModelFileError(f"{path} has more than {_LARGEST} bytes: it is no config.json.")
    try:
        config = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object.")
    return config


def read_config(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """The configuration of a folder, a GGUF file, ``package:NAME`` or a hub id, in ``config.json``'s terms.

    Of a hub id's files only ``config.json`` is fetched.

    Raises:
        UsageError, DownloadError, ModelFileError, CheckpointError, UnsupportedModelError: it cannot be had.
    """
    text = fsdecode(source)
    if is_hub_id(text):
        from . import hub

        return read_config_file(hub.fetch_config(text, revision=revision, token=token, offline=offline))
    path, _ = resolve(source, revision=revision, token=token, offline=offline)
    if path.is_dir():
        return read_config_file(path / "config.json")
    from .gguf import GGUFCheckpoint

    return GGUFCheckpoint(path).config
