"""Everything that can go wrong on purpose: one small hierarchy under :class:`BitqwenError`.

A message says what was given and what is allowed; ``hint`` says what to do next. The command line
prints both, without a stack trace, and ends with the class's ``exit_code``.
"""

from __future__ import annotations


class BitqwenError(Exception):
    """The base of every error that bitqwen raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(BitqwenError):
    """A value that the caller gave is not allowed."""

    exit_code = 2


class ModelFileError(BitqwenError):
    """A file is missing, unreadable, cut off, changed while in use, or not what its format says."""

    exit_code = 3


class UnsupportedModelError(BitqwenError):
    """A well-formed model whose architecture or tensor type this version does not run."""

    exit_code = 4


class CheckpointError(BitqwenError):
    """A checkpoint's tensors are missing, unexpected, mis-shaped or not finite."""

    exit_code = 5


class ResourceError(BitqwenError):
    """Too little memory or disk space for what was asked."""

    exit_code = 6


class DownloadError(BitqwenError):
    """A model could not be fetched."""

    exit_code = 7


class ContextLengthError(BitqwenError):
    """A prompt, with what is to be generated, does not fit into the context."""

    exit_code = 8


class Interrupted(BitqwenError):  # noqa: N818 - the caller's wish, not a fault
    """The caller asked to stop."""

    exit_code = 130
