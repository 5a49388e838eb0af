"""Checkpoints from the Hugging Face hub: shared cache, resume, offline mode, revisions, tokens."""

from __future__ import annotations

import threading
from pathlib import Path

from bitqwen.errors import DownloadError

_WANTED = ["*.safetensors", "*.json", "merges.txt", "vocab.json", "*.jinja", "LICENSE*"]


def fetch(
    repository: str, *, revision: str | None = None, token: str | None = None, offline: bool = False
) -> tuple[Path, str]:
    """Downloads what a checkpoint needs (no pickled weights); returns its folder and commit.

    Raises:
        DownloadError: not found, gated, no network, or not in the cache when ``offline``.
    """
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        folder = Path(
            hub.snapshot_download(
                repository, revision=revision, token=token, local_files_only=offline, allow_patterns=_WANTED
            )
        )
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repository} is gated", hint="Accept its terms on its page, then pass --token or set HF_TOKEN."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise DownloadError(
            f"the hub has no repository {repository}{at}",
            hint="Check the spelling; a private repository needs --token or HF_TOKEN.",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise DownloadError(
            f"{repository} is not in the local cache, and the hub cannot be reached"
            + (" (offline mode)" if offline else ""),
            hint="Check the network, or give a local checkpoint folder or .gguf file.",
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise DownloadError(
            f"fetching {repository} failed: {str(error).splitlines()[0]}",
            hint="Run the command again: the download resumes where it stopped.",
        ) from error
    return folder, folder.name  # a snapshot's folder is named by its commit


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
