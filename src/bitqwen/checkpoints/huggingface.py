"""A local folder in Hugging Face's layout: config.json, safetensors, tokenizer files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitqwen.errors import CheckpointError, ModelFileError, UnsupportedModelError

from .checkpoint import Checkpoint, Provenance
from .safetensors_file import SafetensorsFile
from .tokenizer_data import TokenizerData, from_tokenizer_json

_MAX_JSON = 256 << 20
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        ModelFileError: missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelFileError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_JSON} are read")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not JSON: {error}", hint="Fetch the checkpoint again.") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path} is not a JSON object", hint="Fetch the checkpoint again.")
    return document


class HuggingFaceCheckpoint(Checkpoint):
    """A folder with config.json and one or several safetensors files.

    Raises:
        ModelFileError: a file is missing or damaged.
        UnsupportedModelError: the weights are pickled (.bin, .pt): pickle can run any code, and is
            never loaded.
    """

    def __init__(self, folder: Path, provenance: Provenance | None = None) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.provenance = provenance or Provenance(source=folder.name, kind="folder")
        self._file_of: dict[str, SafetensorsFile] = {}
        files = self._weight_files()
        for path in files:
            shard = SafetensorsFile(path)
            for name in shard.names():
                if name in self._file_of:
                    raise ModelFileError(f"{folder}: tensor {name!r} is in two shards")
                self._file_of[name] = shard
        self._check_index()

    def _weight_files(self) -> list[Path]:
        if (self.folder / _INDEX).exists():
            weight_map = read_json(self.folder / _INDEX).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ModelFileError(f"{self.folder / _INDEX} has no weight_map")
            names = sorted({str(name) for name in weight_map.values()})
            for name in names:
                # A shard is a file beside the index, whatever the index says.
                if Path(name).name != name:
                    raise ModelFileError(f"{self.folder / _INDEX} names a shard outside the folder: {name!r}")
                if not (self.folder / name).exists():
                    raise ModelFileError(
                        f"{self.folder}: shard {name} is missing ({len(names)} are listed)",
                        hint="Fetch the checkpoint again; an interrupted download can be resumed.",
                    )
            return [self.folder / name for name in names]
        if (self.folder / _SINGLE).exists():
            return [self.folder / _SINGLE]
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in self.folder.glob(pattern))
        if pickled:
            raise UnsupportedModelError(
                f"{self.folder} has only pickled weights ({pickled[0]}), which can run any code when loaded",
                hint="Use a checkpoint in safetensors, or convert it with transformers' save_pretrained().",
            )
        raise ModelFileError(
            f"{self.folder} has no weights: neither {_SINGLE} nor {_INDEX}",
            hint="Give a folder with config.json and *.safetensors, a .gguf file, or a hub id.",
        )

    def _check_index(self) -> None:
        if not (self.folder / _INDEX).exists():
            return
        for name, file in read_json(self.folder / _INDEX)["weight_map"].items():
            shard = self._file_of.get(name)
            if shard is None or shard.path.name != file:
                raise CheckpointError(
                    f"{self.folder}: the index names tensor {name!r} in {file}, which does not hold it"
                )

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

    def release(self, name: str) -> None:
        """Lets the system drop the tensor's pages."""
        self._file_of[name].release(name)

    def _optional_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_json(path) if path.exists() else {}

    def tokenizer(self) -> TokenizerData:
        """The tokenizer, from tokenizer.json, or from vocab.json and merges.txt."""
        settings = self._optional_json("tokenizer_config.json")
        if (self.folder / "tokenizer.json").exists():
            document = read_json(self.folder / "tokenizer.json")
        elif (self.folder / "vocab.json").exists() and (self.folder / "merges.txt").exists():
            lines = (self.folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            merges = [line for line in lines if line and not line.startswith("#version")]
            document = {
                "model": {"type": "BPE", "vocab": read_json(self.folder / "vocab.json"), "merges": merges},
                "added_tokens": [
                    {"id": int(token), **value}
                    for token, value in settings.get("added_tokens_decoder", {}).items()
                ],
            }
        else:
            raise ModelFileError(
                f"{self.folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt",
                hint="Fetch the checkpoint's tokenizer files too.",
            )
        return from_tokenizer_json(document, settings, self.generation_config)

    @property
    def chat_template(self) -> str | None:
        """The chat template, from its own file or from tokenizer_config.json."""
        path = self.folder / "chat_template.jinja"
        if path.exists():
            return path.read_text(encoding="utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            template = self._optional_json(name).get("chat_template")
            if isinstance(template, list):  # several, by name
                template = next((t["template"] for t in template if t.get("name") == "default"), None)
            if isinstance(template, str):
                return template
        return None

    @property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or an empty dict."""
        return self._optional_json("generation_config.json")

    @property
    def name(self) -> str:
        """The hub id's last part, or the folder's name."""
        return self.provenance.source.rsplit("/", 1)[-1]

    def sha256(self) -> str:
        """One digest for all weight files: of their names and their own digests."""
        total = hashlib.sha256()
        for path in sorted({file.path for file in self._file_of.values()}):
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
            total.update(f"{path.name} {digest.hexdigest()}\n".encode())
        return total.hexdigest()
