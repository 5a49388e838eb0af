"""A GGUF file as a source of weights, under Hugging Face's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitqwen.gguf import GGUFFile, TensorType, codebook_name, codebook_shape, keys
from bitqwen.models.registry import config_from_gguf

from .checkpoint import Checkpoint, Provenance, file_sha256
from .tokenizer_data import TokenizerData, stop_ids


class GGUFCheckpoint(Checkpoint):
    """A GGUF file whose tensors are read as float32.

    Raises:
        ModelFileError: the file cannot be read or is damaged.
        UnsupportedModelError: another architecture.
        CheckpointError: its tensors are not those that its metadata asks for.
    """

    def __init__(self, path: Path, provenance: Provenance | None = None) -> None:
        self.file = GGUFFile(path)
        config = config_from_gguf(self.file.metadata, self.file.tensors, source=str(path))
        tensors = self.file.tensors
        beside = {codebook_name(name) for name, info in tensors.items() if codebook_shape(info.type)}
        if keys.ROTATED in self.file.metadata:
            beside.add(keys.SIGNS)
        shapes = {name: info.shape for name, info in tensors.items() if name not in beside}
        config.validate_gguf(shapes, source=str(path))
        self.config = config.to_hf()
        self.provenance = provenance or Provenance(source=path.name, kind="gguf")
        self._gguf_name = {
            spec.hf_name: spec.gguf_name for spec in config.tensors() if spec.gguf_name in self.file.tensors
        }
        self._hf_name = {gguf_name: name for name, gguf_name in self._gguf_name.items()}

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._gguf_name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, rows first."""
        return self.file.tensors[self._gguf_name[name]].shape

    def dtype(self, name: str) -> str:
        """A tensor's type in the file."""
        kind = self.file.tensors[self._gguf_name[name]].type
        return kind.name if isinstance(kind, TensorType) else f"type {kind}"

    def read(self, name: str, begin: int = 0, end: int | None = None) -> npt.NDArray[np.float32]:
        """One tensor, or rows of it, dequantised to float32; rotated ones in their own columns."""
        return self.file.read(self._gguf_name[name], begin, end)

    def hf_name(self, gguf_name: str) -> str | None:
        """A tensor's Hugging Face name; None for one that is no weight of the model."""
        return self._hf_name.get(gguf_name)

    def release(self, name: str) -> None:
        """Lets the system drop the tensor's pages."""
        self.file.release(self._gguf_name[name])

    def same_bytes(self, first: str, second: str) -> bool:
        """Whether two tensors are stored alike to the last bit."""
        one, other = (self.file.tensors[self._gguf_name[name]] for name in (first, second))
        rotated = self.file.metadata.get(keys.ROTATED, ())
        if (one.type, one.shape, one.name in rotated) != (other.type, other.shape, other.name in rotated):
            return False
        if codebook_shape(one.type):
            first, second = codebook_name(one.name), codebook_name(other.name)
            if not np.array_equal(self.file.raw(first), self.file.raw(second)):
                return False
        return bool(np.array_equal(self.file.raw(one.name), self.file.raw(other.name)))

    def tokenizer(self) -> TokenizerData:
        """The tokenizer, from the metadata."""
        return TokenizerData.from_gguf_metadata(self.file.metadata)

    @property
    def chat_template(self) -> str | None:
        """The chat template, from the metadata."""
        template = self.file.metadata.get(keys.CHAT_TEMPLATE)
        return template if isinstance(template, str) else None

    @property
    def generation_config(self) -> dict[str, Any]:
        """The stop ids and the recommended sampling settings that the metadata names."""
        metadata = self.file.metadata
        settings = {name: metadata.get(key) for name, key in keys.SAMPLING.items()}
        settings["eos_token_id"] = stop_ids(metadata) or None
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def name(self) -> str:
        """``general.name``, or the file's."""
        return str(self.file.metadata.get(keys.NAME) or Path(self.file.path).stem)

    def sha256(self) -> str:
        """The file's digest."""
        return self.provenance.sha256 or file_sha256(Path(self.file.path))
