"""Where weights come from: a Hugging Face folder, the hub, a GGUF file, or packages on the index."""

from __future__ import annotations

from .checkpoint import Checkpoint, Provenance
from .sources import open_checkpoint
from .tokenizer_data import TokenizerData

__all__ = ["Checkpoint", "Provenance", "TokenizerData", "open_checkpoint"]
