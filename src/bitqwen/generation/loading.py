"""From whatever names a model to a loaded one: GGUF files as they are, all else converted first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen.convert import Progress
    from bitqwen.engine.cache import KvType
    from bitqwen.generation.language_model import LanguageModel


class SourceOptions(TypedDict, total=False):
    """How a source that is no GGUF file becomes one.

    Attributes:
        scheme: how its weights are stored; "w4" by default.
        revision: a hub id's branch, tag or commit.
        token: for gated repositories.
        offline: use only what the cache holds.
        progress: called before each tensor of a conversion.
    """

    scheme: str
    revision: str | None
    token: str | None
    offline: bool
    progress: Callable[[Progress], None] | None


class LoadOptions(SourceOptions, total=False):
    """Options of :func:`bitqwen.load`.

    Attributes:
        threads: of the engine; ``None`` for one a core.
        context: the longest sequence in tokens; ``None`` for 4096, or the model's own if that is less.
        kv: type of the KV cache: "f16", "q8" or "q4".
        batch: tokens of a prompt that are read at once.
        chat_template: to use instead of the model's.
        exact_head: compute every logit of every token, see :meth:`LanguageModel.load`.
        numa: place threads and weights on the machine's memory nodes, see :meth:`LanguageModel.load`.
    """

    threads: int | None
    context: int | None
    kv: KvType
    batch: int
    chat_template: str | None
    exact_head: bool | None
    numa: bool


def load(source: str | PathLike[str], **options: Any) -> LanguageModel:
    """See :func:`bitqwen.load`."""
    from bitqwen.generation.language_model import LanguageModel

    names = LoadOptions.__annotations__.keys() | SourceOptions.__annotations__.keys()
    unknown = sorted(options.keys() - names)
    if unknown:
        raise UsageError(f"load has no option {unknown[0]!r}; allowed: {', '.join(sorted(names))}.")
    of_source = {name: options.pop(name) for name in SourceOptions.__annotations__ if name in options}
    return LanguageModel.load(gguf_path(source, **of_source), **options)


def gguf_path(
    source: str | PathLike[str],
    *,
    scheme: str = "w4",
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Path:
    """The GGUF file of a source: itself, or its conversion in bitqwen's cache, made if it is not there.

    Args:
        source: a .gguf file, a checkpoint folder, a hub id or ``package:NAME``.
        scheme: how the weights of what is no GGUF file are stored.
        revision: a hub id's branch, tag or commit.
        token: for gated repositories.
        offline: use only what the cache holds.
        progress: called before each tensor of a conversion.

    Raises:
        UsageError, DownloadError, ModelFileError, UnsupportedModelError, CheckpointError, ResourceError:
            as :func:`bitqwen.convert.convert`.
    """
    from bitqwen.checkpoints.cache import cache_dir
    from bitqwen.checkpoints.sources import resolve

    path, provenance = resolve(source, revision=revision, token=token, offline=offline)
    if path.is_file():
        return path
    name = provenance.source.rsplit("/", 1)[-1]
    target = cache_dir() / "converted" / f"{name}-{scheme}-{_fingerprint(path)}.gguf"
    if not target.exists():
        from bitqwen.convert import convert

        target.parent.mkdir(parents=True, exist_ok=True)
        # By its own name once more, for the file's provenance; it is on this machine by now.
        convert(source, target, scheme, revision=revision, token=token, offline=True, progress=progress)
    return target


def _fingerprint(folder: Path) -> str:
    """Changes when a file of a checkpoint folder does, or when bitqwen may convert it differently."""
    from bitqwen import __version__

    state = [__version__, str(folder.resolve())]
    for file in sorted(folder.iterdir()):
        if file.is_file():
            facts = file.stat()
            state.append(f"{file.name} {facts.st_size} {facts.st_mtime_ns}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()[:12]
