"""Checkpoints from the Hugging Face hub: shared cache, offline mode, revisions, tokens."""

from __future__ import annotations

import threading
from pathlib import Path

from bitqwen.errors import BitqwenError, DownloadError, ResourceError

# What a checkpoint consists of. Pickled weights are not even fetched; subfolders hold other formats.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "LICENSE*"]
_UNWANTED = ["*/*"]
_NO_SPACE = 28  # errno.ENOSPC


def fetch(
    repository: str, *, revision: str | None = None, token: str | None = None, offline: bool = False
) -> tuple[Path, str]:
    """Downloads a checkpoint into the hub's own cache, or finds it there.

    A connection that breaks is taken up where it broke while this runs; a later call keeps the files that
    are complete and fetches the others anew.

    Args:
        repository: ``owner/name``.
        revision: a branch, tag or commit; default: the main branch.
        token: for gated and private repositories; default: HF_TOKEN, or what ``hf auth login`` stored.
        offline: use only the cache; so does the environment's HF_HUB_OFFLINE=1.

    Returns:
        The snapshot's folder, and its commit.

    Raises:
        DownloadError: not found, gated, no network, or not in the cache when offline.
        UnsupportedModelError: the repository has only pickled weights.
        ResourceError: the disk is full.
    """
    import huggingface_hub as hub

    try:
        folder = Path(
            hub.snapshot_download(
                repository,
                revision=revision,
                token=token,
                local_files_only=offline,
                allow_patterns=_WANTED,
                ignore_patterns=_UNWANTED,
            )
        )
    except Exception as error:
        translated = _translated(error, repository, revision, offline)
        if translated is None:
            raise
        raise translated from error
    if not any(folder.glob("*.safetensors")):
        raise _no_weights(folder, repository, token)
    return folder, folder.name  # a snapshot's folder is named by its commit


def fetch_config(
    repository: str, *, revision: str | None = None, token: str | None = None, offline: bool = False
) -> Path:
    """A checkpoint's ``config.json``, fetched alone.

    Args:
        repository: ``owner/name``.
        revision: a branch, tag or commit; default: the main branch.
        token: for gated and private repositories.
        offline: use only the cache.

    Raises:
        DownloadError: not found, gated, no network, or not in the cache when offline.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        return Path(
            hub.hf_hub_download(
                repository, "config.json", revision=revision, token=token, local_files_only=offline
            )
        )
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise _translated(error, repository, revision, offline) or error from error
        raise DownloadError(
            f"{repository} has no config.json", hint="Give a repository that holds a checkpoint."
        ) from error
    except Exception as error:
        translated = _translated(error, repository, revision, offline)
        if translated is None:
            raise
        raise translated from error


def _translated(
    error: Exception, repository: str, revision: str | None, offline: bool
) -> BitqwenError | None:
    """The error for a user; None for what is none of the hub's."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{repository} is gated: its owner asks for an agreement first",
            hint="Accept its terms on its page of the hub, then give --token or set HF_TOKEN.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            f"{repository} has no revision {revision!r}", hint="Give a branch, a tag or a commit that it has."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DownloadError(
            f"the hub has no repository {repository}, or it is private",
            hint="Check the spelling; for a private repository give --token or set HF_TOKEN.",
        )
    if isinstance(error, errors.HFValidationError):
        return DownloadError(
            f"{repository!r} is no hub id", hint="An id is owner/name, such as Qwen/Qwen2.5-1.5B-Instruct."
        )
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        missing = f"{repository}{f' at revision {revision!r}' if revision else ''} is not in the local cache"
        if offline or isinstance(_cause(error), errors.OfflineModeIsEnabled):
            return DownloadError(
                f"{missing} (not completely, at least), and offline mode forbids to fetch it",
                hint="Leave out --offline, or unset HF_HUB_OFFLINE.",
            )
        return DownloadError(
            f"{missing}, and the hub cannot be reached: {_reason(error)}",
            hint="Check the network, or give a local checkpoint folder or .gguf file.",
        )
    if isinstance(error, OSError) and error.errno == _NO_SPACE:
        return ResourceError(
            f"the disk is full: {repository} could not be fetched completely",
            hint="Free some space, or set HF_HOME to another disk; files that are complete are kept.",
        )
    # Every HTTP library that huggingface-hub has used derives its errors from OSError or from its own.
    if isinstance(error, (errors.HfHubHTTPError, OSError)) or _is_http_error(error):
        return DownloadError(
            f"fetching {repository} failed: {_reason(error)}",
            hint="Run the command again: files that are complete are kept.",
        )
    return None


def _is_http_error(error: Exception) -> bool:
    return any(
        kind.__module__.split(".")[0] in {"httpx", "httpx2", "requests"} for kind in type(error).__mro__
    )


def _cause(error: BaseException) -> BaseException:
    """The innermost cause: what went wrong, not who noticed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    lines = str(_cause(error)).strip().splitlines()
    return lines[0] if lines else type(_cause(error)).__name__


def _no_weights(folder: Path, repository: str, token: str | None) -> BitqwenError:
    """Why a repository's snapshot has no safetensors."""
    import huggingface_hub as hub

    from .huggingface import pickle_refusal, pickled_weights

    try:
        names = hub.HfApi(token=token).list_repo_files(repository, revision=folder.name)
    except Exception:  # offline, most likely: say what is known
        names = []
    gguf = sorted(name for name in names if name.endswith(".gguf"))
    if gguf:
        return DownloadError(
            f"{repository} holds GGUF files, not a checkpoint in safetensors",
            hint=f"Fetch one ('hf download {repository} {gguf[0]}' prints where it lies) and give its path.",
        )
    pickled = pickled_weights(names)
    if pickled:
        return pickle_refusal(repository, pickled)
    return DownloadError(
        f"{repository} has no weights in safetensors",
        hint="Give a repository with config.json and *.safetensors, such as Qwen/Qwen2.5-1.5B-Instruct.",
    )


def reachable(repository: str, *, token: str | None = None, timeout: float = 5.0) -> bool:
    """Whether the hub answers for a repository within ``timeout`` seconds, name look-up included.

    Args:
        repository: a hub id whose config.json is asked for.
        token: for gated repositories.
        timeout: seconds to wait; :func:`fetch` itself would go on trying for much longer.
    """
    answers: list[bool] = []

    def ask() -> None:
        import huggingface_hub as hub

        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(repository, "config.json"), token=token, timeout=timeout)
        except Exception:  # whatever the cause and the HTTP library, there is no answer
            return
        answers.append(True)

    # The system's name look-up knows no time limit, so it may outlive the wait.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)
