"""What a model's files say about it, read without its weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitqwen.cli import terminal
from bitqwen.engine import head, memory
from bitqwen.engine.cache import KvType
from bitqwen.engine.model import DEFAULT_CONTEXT
from bitqwen.errors import UnsupportedModelError, UsageError
from bitqwen.gguf import GGUFFile, TensorType, keys
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.models.registry import ARCHITECTURES, config_from_hf

if TYPE_CHECKING:
    from bitqwen.measure.receipt import Receipt

# An array of this many values or more (the vocabulary, the merges) is told by its length.
_LONG_ARRAY = 16
_TORCH_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


class Tensor(NamedTuple):
    """One tensor; ``shape`` with rows first, ``nbytes`` as it lies in the file.

    ``rotated``: whether it is stored in rotated columns (docs/file-format.md).
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    rotated: bool = False

    @property
    def weights(self) -> int:
        """How many values it holds."""
        return math.prod(self.shape)


class TypeSum(NamedTuple):
    """All tensors of one type together."""

    type: str
    tensors: int
    weights: int
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits that a value takes, scales included."""
        return 8 * self.nbytes / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Inspection:
    """A model as its files describe it.

    Attributes:
        path: the file or folder.
        kind: "gguf", "folder", or "hub" for a model that is known by its configuration alone.
        name: what the model calls itself.
        architecture: GGUF's ``general.architecture``, or config.json's ``model_type``.
        config: the hyperparameters; None if this version does not run the model.
        unsupported: why it does not.
        file_bytes: of the GGUF file, or of all weight files together.
        tensors: in the file's order.
        metadata: GGUF's, long arrays shortened; or config.json.
    """

    path: Path
    kind: str
    name: str
    architecture: str
    config: Qwen2Config | None
    unsupported: str
    file_bytes: int
    tensors: list[Tensor]
    metadata: dict[str, Any]

    @property
    def total(self) -> TypeSum:
        """All tensors together."""
        return _sum("all", self.tensors)

    @property
    def receipt(self) -> Receipt | None:
        """What was measured when it was converted, if the file says so."""
        from bitqwen.measure import receipt

        return receipt.read(self.metadata, self.file_bytes)

    def by_type(self) -> list[TypeSum]:
        """The tensors summed by type, the largest first."""
        types = {tensor.type for tensor in self.tensors}
        sums = [_sum(name, [t for t in self.tensors if t.type == name]) for name in types]
        return sorted(sums, key=lambda row: (-row.nbytes, row.type))

    def memory(self, context: int | None, kv: KvType, threads: int | None) -> dict[str, int] | None:
        """Bytes that running it takes (weights, cache, scratch), for that context; None if it cannot run.

        Beside them ``available`` bytes, and ``largest_context``, the longest that fits into these.

        Raises:
            UsageError: the model's context is shorter than that.
        """
        if self.config is None:
            return None
        longest = self.config.max_context
        if context is not None and context > longest:
            raise UsageError(f"The context is {context}; this model allows 1 to {longest}.")
        chosen = min(DEFAULT_CONTEXT, longest) if context is None else context
        return memory_needs(
            self.config,
            sum(tensor.nbytes for tensor in self.tensors),
            chosen,
            kv=kv,
            threads=threads,
            screened=head.choose(self.config, self.tensors).screened,
        )

    def hyperparameters(self) -> dict[str, Any]:
        """Hyperparameters by name; for an architecture that bitqwen does not know, GGUF's own keys."""
        if self.config is not None:
            return asdict(self.config)
        prefix = f"{self.architecture}."
        return {key: value for key, value in self.metadata.items() if key.startswith(prefix)}


def memory_needs(
    config: Qwen2Config,
    weights: int,
    context: int,
    *,
    kv: KvType = "f16",
    threads: int | None = None,
    screened: bool = False,
) -> dict[str, int]:
    """What :meth:`Inspection.memory` gives, of a model whose tensors take ``weights`` bytes.

    A screened head gives way where memory is short.
    """
    room = memory.available()
    need = memory.estimate(
        config, weights=weights, context=context, kv=kv, threads=threads, screened=screened
    )
    if screened and sum(need.values()) > room:
        need = memory.estimate(config, weights=weights, context=context, kv=kv, threads=threads)
    return {
        "context": context,
        **need,
        "total": sum(need.values()),
        "available": room,
        "largest_context": memory.largest_context(config, weights=weights, room=room, kv=kv, threads=threads),
    }


def memory_text(need: dict[str, int], kv: KvType) -> str:
    """Such needs in a sentence; where they do not fit, with what would."""
    parts = (
        f"weights {terminal.size(need['weights'])}, KV cache ({kv}) {terminal.size(need['cache'])}, "
        f"scratch {terminal.size(need['scratch'])}"
    )
    room = f"the {terminal.size(need['available'])} available now"
    text = f"Memory for a context of {need['context']}: {terminal.size(need['total'])} ({parts}); "
    if need["total"] <= need["available"]:
        return f"{text}fits into {room}."
    if need["largest_context"]:
        cure = f"The largest context that fits is {need['largest_context']}."
    else:
        cure = "No context fits: take a scheme of fewer bits, or a smaller model."
    return f"{text}does not fit into {room}. {cure}"


def inspect_path(path: Path) -> Inspection:
    """Reads what a GGUF file or a checkpoint folder says about itself.

    Raises:
        ModelFileError: it cannot be read, or is damaged.
        CheckpointError: a hyperparameter is missing or impossible.
    """
    return _folder(path) if path.is_dir() else _gguf(path)


def inspect_hub(
    repository: str, *, revision: str | None = None, token: str | None = None, offline: bool = False
) -> Inspection:
    """Reads what a model on the hub will be, from its ``config.json`` alone: no weights are fetched.

    Raises:
        DownloadError: the configuration cannot be had.
        CheckpointError: a hyperparameter is missing or impossible.
    """
    from bitqwen.checkpoints.configs import read_config
    from bitqwen.checkpoints.safetensors_file import ITEM_BYTES

    metadata = read_config(repository, revision=revision, token=token, offline=offline)
    config, unsupported, tensors = None, "", []
    try:
        config = config_from_hf(metadata, source=repository)
    except UnsupportedModelError as error:
        unsupported = error.message
    dtype = _TORCH_NAMES.get(str(metadata.get("torch_dtype", metadata.get("dtype"))), "BF16")
    if config is not None:
        tensors = [
            Tensor(spec.hf_name, dtype, spec.shape, ITEM_BYTES[dtype] * math.prod(spec.shape))
            for spec in config.tensors()
            if not spec.optional
        ]
    return Inspection(
        path=Path(repository),
        kind="hub",
        name=repository.rsplit("/", 1)[-1],
        architecture=str(metadata.get("model_type", "")),
        config=config,
        unsupported=unsupported,
        file_bytes=sum(tensor.nbytes for tensor in tensors),
        tensors=tensors,
        metadata=metadata,
    )


def _gguf(path: Path) -> Inspection:
    file = GGUFFile(path)
    metadata = {
        key: f"[{file.metadata.length(key)} values]"
        if file.metadata.length(key) >= _LONG_ARRAY
        else file.metadata[key]
        for key in file.metadata
    }
    architecture = str(metadata.get("general.architecture", ""))
    config, unsupported = None, f"architecture {architecture!r}; supported: {', '.join(ARCHITECTURES)}"
    if architecture in ARCHITECTURES:
        try:
            config, unsupported = ARCHITECTURES[architecture].from_gguf(file.metadata, file.tensors), ""
        except UnsupportedModelError as error:
            unsupported = error.message
    rotated = set(file.metadata.get(keys.ROTATED, ()))
    tensors = [
        Tensor(info.name, _type_name(info.type), info.shape, info.nbytes, info.name in rotated)
        for info in file.tensors.values()
    ]
    unread = sorted({tensor.type for tensor in tensors} - set(TensorType.__members__))
    if unread:
        config, unsupported = None, f"tensors of {', '.join(unread)}"
    return Inspection(
        path=path,
        kind="gguf",
        name=str(metadata.get("general.name", path.stem)),
        architecture=architecture,
        config=config,
        unsupported=unsupported,
        file_bytes=file.nbytes,
        tensors=tensors,
        metadata=metadata,
    )


def _folder(path: Path) -> Inspection:
    from bitqwen.checkpoints.huggingface import HuggingFaceCheckpoint
    from bitqwen.checkpoints.safetensors_file import ITEM_BYTES

    checkpoint = HuggingFaceCheckpoint(path)
    config, unsupported = None, ""
    try:
        config = config_from_hf(checkpoint.config, source=str(path / "config.json"))
    except UnsupportedModelError as error:
        unsupported = error.message
    tensors = [
        Tensor(
            name,
            checkpoint.dtype(name),
            checkpoint.shape(name),
            ITEM_BYTES.get(checkpoint.dtype(name), 0) * math.prod(checkpoint.shape(name)),
        )
        for name in checkpoint.names()
    ]
    return Inspection(
        path=path,
        kind="folder",
        name=path.resolve().name,
        architecture=str(checkpoint.config.get("model_type", "")),
        config=config,
        unsupported=unsupported,
        file_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        tensors=tensors,
        metadata=checkpoint.config,
    )


def _type_name(tensor_type: int) -> str:
    return tensor_type.name if isinstance(tensor_type, TensorType) else f"type {tensor_type}"


def _sum(name: str, tensors: list[Tensor]) -> TypeSum:
    return TypeSum(name, len(tensors), sum(t.weights for t in tensors), sum(t.nbytes for t in tensors))
