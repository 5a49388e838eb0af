"""A local folder in Hugging Face's layout: config.json, safetensors, tokenizer files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitqwen.errors import CheckpointError, ModelFileError, UnsupportedModelError

from .checkpoint import Checkpoint, Provenance, file_sha256
from .files import read_json, read_text
from .safetensors_file import SafetensorsFile
from .tokenizer_data import TokenizerData

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Pickled files that stand in a checkpoint and hold no weights.
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
# tokenizer_config.json names the tokenizer's Python class; these have Qwen2's way of cutting words.
_QWEN2_TOKENIZERS = (None, "Qwen2Tokenizer", "Qwen2TokenizerFast")


class HuggingFaceCheckpoint(Checkpoint):
    """A folder with config.json and one or several safetensors files.

    Raises:
        ModelFileError: a file is missing or damaged.
        CheckpointError: the index and the shards do not fit together.
        UnsupportedModelError: the weights are pickled (.bin, .pt): pickle can run any code, and is
            never loaded.
    """

    def __init__(self, folder: Path, provenance: Provenance | None = None) -> None:
        self.folder = folder
        try:
            self._files = frozenset(path.name for path in folder.iterdir())
        except OSError as error:
            raise ModelFileError(f"cannot read {folder}: {error.strerror}") from error
        if "config.json" not in self._files:
            raise ModelFileError(f"{folder} has no config.json", hint=self._other_contents())
        self.config = read_json(folder / "config.json")
        self.provenance = provenance or Provenance(source=folder.resolve().name, kind="folder")
        self._weight_map = self._read_index()
        self._file_of: dict[str, SafetensorsFile] = {}
        for path in self._weight_files():
            shard = SafetensorsFile(path)
            for name in shard.names():
                if name in self._file_of:
                    raise CheckpointError(
                        f"{folder}: tensor {name!r} is in two shards, {self._file_of[name].path.name} "
                        f"and {path.name}"
                    )
                self._file_of[name] = shard
        self._check_index()

    def _read_index(self) -> dict[str, str]:
        """Which file holds which tensor; empty for weights in one file, which wins as in transformers."""
        path = self.folder / _INDEX
        if _SINGLE in self._files or _INDEX not in self._files:
            return {}
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFileError(f"{path} has no weight_map", hint="Fetch the checkpoint again.")
        for name, shard in weight_map.items():
            # A shard is a safetensors file beside the index, whatever the index says.
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise ModelFileError(
                    f"{path}: tensor {name!r} is said to be in {shard!r}; "
                    "a *.safetensors file in the same folder is allowed"
                )
        return weight_map

    def _weight_files(self) -> list[Path]:
        if self._weight_map:
            shards = sorted(set(self._weight_map.values()))
            missing = [shard for shard in shards if shard not in self._files]
            if missing:
                raise ModelFileError(
                    f"{self.folder}: {len(missing)} of {len(shards)} shards are missing: {missing[0]} ...",
                    hint="Fetch the checkpoint again: files that are complete are kept.",
                )
            return [self.folder / shard for shard in shards]
        if _SINGLE in self._files:
            return [self.folder / _SINGLE]
        pickled = pickled_weights(self._files)
        if pickled:
            raise pickle_refusal(str(self.folder), pickled)
        raise ModelFileError(
            f"{self.folder} has no weights: neither {_SINGLE} nor {_INDEX}",
            hint=self._other_contents(),
        )

    def _check_index(self) -> None:
        for name, file in self._weight_map.items():
            shard = self._file_of.get(name)
            if shard is None or shard.path.name != file:
                raise CheckpointError(
                    f"{self.folder}: the index names tensor {name!r} in {file}, which does not hold it",
                    hint="The index and the shards are of different checkpoints: fetch them again.",
                )

    def _other_contents(self) -> str:
        """What to do with a folder that is no checkpoint."""
        gguf = sorted(name for name in self._files if name.endswith(".gguf"))
        if gguf:
            return f"Give the GGUF file itself: {self.folder / gguf[0]}"
        if "adapter_config.json" in self._files:
            return "This is an adapter (LoRA): merge it into its base model first."
        return "Give a folder with config.json and *.safetensors, a .gguf file, or a hub id."

    def _json_if_there(self, name: str) -> dict[str, Any]:
        return read_json(self.folder / name) if name in self._files else {}

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, rows first."""
        return self._file_of[name].shape(name)

    def dtype(self, name: str) -> str:
        """A tensor's type in the file."""
        return self._file_of[name].dtype(name)

    def read(self, name: str, begin: int = 0, end: int | None = None) -> npt.NDArray[np.float32]:
        """One tensor, or rows of it, as float32."""
        return self._file_of[name].read(name, begin, end)

    def tokenizer(self) -> TokenizerData:
        """The tokenizer, from tokenizer.json, or from vocab.json and merges.txt."""
        settings = self._json_if_there("tokenizer_config.json")
        if "tokenizer.json" in self._files:
            document = read_json(self.folder / "tokenizer.json")
        elif {"vocab.json", "merges.txt"} <= self._files:
            document = self._slow_tokenizer(settings)
        else:
            raise ModelFileError(
                f"{self.folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt",
                hint="Fetch the checkpoint's tokenizer files too.",
            )
        return TokenizerData.from_tokenizer_json(
            document, settings=settings, generation=self.generation_config, config=self.config
        )

    def _slow_tokenizer(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What tokenizer.json would hold, from the files that came before it."""
        if settings.get("tokenizer_class") not in _QWEN2_TOKENIZERS:
            raise UnsupportedModelError(
                f"{self.folder}: tokenizer_class is {settings['tokenizer_class']!r}; with vocab.json and "
                "merges.txt 'Qwen2Tokenizer' is supported",
                hint="Save the tokenizer with transformers, which writes tokenizer.json.",
            )
        lines = read_text(self.folder / "merges.txt").split("\n")
        if lines[0].startswith("#version"):
            del lines[0]
        added = settings.get("added_tokens_decoder", {})
        if not isinstance(added, dict) or not all(
            key.isdecimal() and len(key) < 10 and isinstance(value, dict) for key, value in added.items()
        ):
            raise ModelFileError(f"{self.folder / 'tokenizer_config.json'}: added_tokens_decoder is damaged")
        return {
            "model": {
                "vocab": read_json(self.folder / "vocab.json"),
                "merges": [line for line in lines if line],
            },
            "added_tokens": [{**value, "id": int(key)} for key, value in added.items()],
        }

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template, from its own file or from tokenizer_config.json."""
        if "chat_template.jinja" in self._files:
            return read_text(self.folder / "chat_template.jinja")
        for name in ("chat_template.json", "tokenizer_config.json"):
            template = self._json_if_there(name).get("chat_template")
            if isinstance(template, list):  # several, by name
                named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
                template = named.get("default")
            if isinstance(template, str):
                return template
        return None

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or an empty dict."""
        return self._json_if_there("generation_config.json")

    @property
    def name(self) -> str:
        """The hub id's last part, or the folder's name."""
        return self.provenance.source.rsplit("/", 1)[-1]

    def sha256(self) -> str:
        """One digest for all weight files: of their names and their own digests, as sha256sum lists them."""
        total = hashlib.sha256()
        for path in sorted({file.path for file in self._file_of.values()}):
            total.update(f"{file_sha256(path)}  {path.name}\n".encode())
        return total.hexdigest()


def pickled_weights(names: Iterable[str]) -> list[str]:
    """Those of a folder's files that hold pickled weights, by their names."""
    return sorted(
        name
        for name in names
        if name not in _NO_WEIGHTS and any(fnmatch(name, pattern) for pattern in _PICKLED)
    )


def pickle_refusal(source: str, pickled: list[str]) -> UnsupportedModelError:
    """The error for a checkpoint without safetensors."""
    return UnsupportedModelError(
        f"{source} has only pickled weights ({pickled[0]}), which can run any code when they are loaded; "
        "*.safetensors are supported",
        hint="Use a checkpoint in safetensors, or load this one with transformers where you trust it and "
        "write it again with save_pretrained().",
    )
