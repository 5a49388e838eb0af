"""A GGUF file as a source of weights, under Hugging Face's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitqwen.errors import CheckpointError
from bitqwen.gguf import GGUFFile, TensorType, keys
from bitqwen.models.qwen2 import Qwen2Config

from .checkpoint import Checkpoint, Provenance
from .tokenizer_data import TokenizerData


class GGUFCheckpoint(Checkpoint):
    """A GGUF file whose tensors are read as float32.

    Raises:
        ModelFileError: the file cannot be read or is damaged.
        UnsupportedModelError: another architecture.
        CheckpointError: it has tensors that its architecture does not.
    """

    def __init__(self, path: Path, provenance: Provenance | None = None) -> None:
        self.file = GGUFFile(path)
        config = Qwen2Config.from_gguf(self.file.metadata, self.file.tensors)
        self.config = config.to_hf()
        self.provenance = provenance or Provenance(source=path.name, kind="gguf")
        hf_name = {spec.gguf_name: spec.hf_name for spec in config.tensors()}
        unknown = [name for name in self.file.tensors if name not in hf_name]
        if unknown:
            raise CheckpointError(f"{path}: tensor {unknown[0]!r} is not part of a qwen2 model")
        self._gguf_name = {hf_name[name]: name for name in self.file.tensors}

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
        """One tensor, or rows of it, dequantised to float32."""
        return self.file.read(self._gguf_name[name], begin, end)

    def release(self, name: str) -> None:
        """Lets the system drop the tensor's pages."""
        self.file.release(self._gguf_name[name])

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
        """The stop ids that the metadata names."""
        return {"eos_token_id": list(self.tokenizer().stop_ids)}

    @property
    def name(self) -> str:
        """``general.name``, or the file's."""
        return str(self.file.metadata.get(keys.NAME) or Path(self.file.path).stem)
