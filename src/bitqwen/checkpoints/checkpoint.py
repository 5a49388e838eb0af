"""What every source of weights offers: names, shapes, and one tensor at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bitqwen.errors import ModelFileError

from .tokenizer_data import TokenizerData


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint came from, as a converted file records it.

    Attributes:
        source: the hub id, ``package:NAME``, or the file's or folder's own name without its path.
        kind: what kind of source that is.
        revision: the hub's commit.
        sha256: of the file, where it was checked on the way.
    """

    source: str
    kind: Literal["folder", "hub", "gguf", "package"]
    revision: str | None = None
    sha256: str | None = None


class Checkpoint(ABC):
    """A model's weights and what belongs to them; names are Hugging Face's for every source.

    Attributes:
        config: as in Hugging Face's config.json.
        provenance: where it came from.
    """

    config: dict[str, Any]
    provenance: Provenance

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all tensors."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, rows first."""

    @abstractmethod
    def dtype(self, name: str) -> str:
        """A tensor's type in the source: "BF16", "F32", "Q4_K" ..."""

    @abstractmethod
    def read(self, name: str, begin: int = 0, end: int | None = None) -> npt.NDArray[np.float32]:
        """One tensor, or rows [begin, end) of it, as float32 of :meth:`shape`.

        Raises:
            ModelFileError: the file is cut off or was changed.
            UnsupportedModelError: a type that bitqwen does not read.
        """

    def release(self, name: str) -> None:  # noqa: B027 - most sources have nothing to release
        """Says that a tensor will not be read again soon."""

    @abstractmethod
    def tokenizer(self) -> TokenizerData:
        """The tokenizer.

        Raises:
            ModelFileError: there is none, or it is damaged.
        """

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The chat template's Jinja source, if there is one."""

    @property
    @abstractmethod
    def generation_config(self) -> dict[str, Any]:
        """As in Hugging Face's generation_config.json; empty if there is none."""

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name for the model."""

    @abstractmethod
    def sha256(self) -> str:
        """One digest for all weights, for a converted file to record; reads them all once.

        Raises:
            ModelFileError: a file cannot be read.
        """

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors by name."""
        return {name: self.shape(name) for name in self.names()}


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        ModelFileError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()
