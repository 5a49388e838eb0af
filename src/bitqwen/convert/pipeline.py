"""The one way from a checkpoint to a GGUF file: read, check, quantise, write; tensor by tensor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint, open_checkpoint
from bitqwen.checkpoints.gguf import GGUFCheckpoint
from bitqwen.errors import CheckpointError, UsageError
from bitqwen.gguf import GGUFWriter, keys
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.models.registry import config_from_hf
from bitqwen.models.specification import TensorSpec
from bitqwen.quant import Encoded, Scheme, TensorPlan, quantize, schemes

from .report import ConversionReport, Progress, ProgressCallback, TensorReport

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PLAIN_ROUNDING = (
    "rounding a model that was not trained for three levels gives gibberish, quickly; "
    "it is written because you asked for it"
)
# Larger matrices are converted in pieces of rows, so that memory does not grow with the vocabulary.
_PIECE_VALUES = 32 << 20


class _Job(NamedTuple):
    spec: TensorSpec
    plan: TensorPlan


def convert(
    source: str | PathLike[str],
    output: str | PathLike[str],
    scheme: str = "w4",
    *,
    embedding: str | None = None,
    head: str | None = None,
    force: bool = False,
    threads: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: ProgressCallback | None = None,
) -> ConversionReport:
    """Converts a checkpoint to a GGUF file.

    Memory stays bounded by two tensors whatever the model's size; the output appears under its name only
    when it is complete, and the same source and scheme give the same bytes on every machine.

    Args:
        source: a checkpoint folder, a GGUF file, ``package:NAME`` or a hub id.
        output: the file to write.
        scheme: a name from ``bitqwen.quant.names()``.
        embedding: the embedding's type, instead of the scheme's.
        head: the output head's type, instead of the scheme's.
        force: convert with "bitnet" a model that was not trained for it.
        threads: default: one per core.
        revision: a hub id's branch, tag or commit.
        token: for gated repositories.
        offline: use only what the cache holds.
        progress: called before each tensor.

    Raises:
        UsageError: an unknown scheme or type; "bitnet" without ``force``; output is the source.
        CheckpointError: tensors missing, unexpected, mis-shaped, or not finite.
        ResourceError: the disk has too little space.
        DownloadError, ModelFileError, UnsupportedModelError: the source cannot be used.
    """
    started = time.perf_counter()
    chosen = schemes.get(scheme)
    checkpoint = open_checkpoint(source, revision=revision, token=token, offline=offline)
    target = Path(output)
    if isinstance(checkpoint, GGUFCheckpoint) and target.exists() and target.samefile(checkpoint.file.path):
        raise UsageError(f"{target} is the source itself", hint="Give -o another name.")
    config = config_from_hf(checkpoint.config, source=checkpoint.provenance.source)
    config.validate(checkpoint.shapes(), source=checkpoint.provenance.source)
    report = ConversionReport(path=target, scheme=scheme)
    _check_ternary(checkpoint, config, chosen, force, report)
    _warn_of_requantising(checkpoint, report)
    jobs = _plan(checkpoint, config, chosen, embedding, head)

    with GGUFWriter(target) as writer:
        writer.add_metadata(_metadata(checkpoint, config, chosen))
        for spec, plan in jobs:
            writer.add_tensor(spec.gguf_name, spec.shape, plan.tensor_type)
        report.nbytes = writer.nbytes
        writer.begin()
        total = sum(4 * int(np.prod(job.spec.shape)) for job in jobs)
        done = 0
        for job in jobs:
            if progress:
                progress(Progress(job.spec.gguf_name, done, total))
            report.tensors.append(_convert_tensor(checkpoint, job, writer, threads or 0))
            done += 4 * int(np.prod(job.spec.shape))
        writer.finish()
        if progress:
            progress(Progress("", total, total))
    report.seconds = time.perf_counter() - started
    return report


def _plan(
    checkpoint: Checkpoint, config: Qwen2Config, scheme: Scheme, embedding: str | None, head: str | None
) -> list[_Job]:
    present = set(checkpoint.names())
    jobs = []
    for spec in config.tensors():
        if spec.hf_name not in present or (spec.hf_name == _HEAD and _is_copy(checkpoint, config)):
            continue
        jobs.append(_Job(spec, scheme.plan(spec.role, spec.shape, embedding=embedding, head=head)))
    return jobs


def _is_copy(checkpoint: Checkpoint, config: Qwen2Config) -> bool:
    """Whether the stored head is the embedding again: then one copy is enough."""
    if config.tied:
        return True
    if isinstance(checkpoint, GGUFCheckpoint):
        return checkpoint.same_bytes(_EMBEDDING, _HEAD)
    return False


def _convert_tensor(checkpoint: Checkpoint, job: _Job, writer: GGUFWriter, threads: int) -> TensorReport:
    started = time.perf_counter()
    spec, plan = job
    nbytes, error, energy = 0, 0.0, 0.0

    def parts() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal nbytes, error, energy
        for begin, end in _pieces(spec, plan):
            encoded = _encode(checkpoint.read(spec.hf_name, begin, end), job, threads)
            nbytes += encoded.data.nbytes
            error += encoded.error
            energy += encoded.energy
            yield encoded.data

    writer.write_parts(spec.gguf_name, parts())
    checkpoint.release(spec.hf_name)
    return TensorReport(
        name=spec.gguf_name,
        role=spec.role,
        shape=spec.shape,
        source_type=checkpoint.dtype(spec.hf_name),
        tensor_type=plan.tensor_type.name,
        nbytes=nbytes,
        error=error,
        energy=energy,
        seconds=time.perf_counter() - started,
    )


def _pieces(spec: TensorSpec, plan: TensorPlan) -> Iterator[tuple[int, int | None]]:
    """Rows to convert at a time: a whole tensor, or pieces of a large one."""
    if len(spec.shape) == 1 or plan.fit == "absmean":  # one scale for the whole matrix
        yield 0, None
        return
    rows = max(1, _PIECE_VALUES // spec.shape[1])
    for begin in range(0, spec.shape[0], rows):
        yield begin, min(begin + rows, spec.shape[0])


def _encode(values: npt.NDArray[np.float32], job: _Job, threads: int) -> Encoded:
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"tensor {job.spec.hf_name} holds values that are not finite numbers (NaN or infinity)",
            hint="The checkpoint is damaged or its training diverged: fetch it again, or use another.",
        )
    return quantize(values, job.plan.tensor_type, fit=job.plan.fit, threads=threads)


def _check_ternary(
    checkpoint: Checkpoint, config: Qwen2Config, scheme: Scheme, force: bool, report: ConversionReport
) -> None:
    if not scheme.needs_force:
        return
    spec = next(spec for spec in config.tensors() if spec.role == "matrix")
    sample = np.abs(checkpoint.read(spec.hf_name, 0, 64))
    levels = np.unique(sample[sample > 0].round(6))
    if len(levels) <= 1:  # already -s, 0, s
        return
    if not force:
        raise UsageError(
            f"scheme '{scheme.name}' is for models trained with three levels, and this one was not "
            f"({spec.hf_name} has more): plain rounding gives gibberish",
            hint="Use --scheme w4 (or w2); --force converts it all the same.",
        )
    report.warnings.append(_PLAIN_ROUNDING)


def _warn_of_requantising(checkpoint: Checkpoint, report: ConversionReport) -> None:
    types = {checkpoint.dtype(name) for name in checkpoint.names()} - {"F32", "F16", "BF16"}
    if types:
        report.warnings.append(
            f"requantising from {', '.join(sorted(types))}: the source has lost precision before; "
            "convert from the original checkpoint for the best result"
        )


def _metadata(checkpoint: Checkpoint, config: Qwen2Config, scheme: Scheme) -> dict[str, Any]:
    from bitqwen import __version__

    tokenizer = checkpoint.tokenizer().padded(config.vocab_size)
    origin = checkpoint.provenance
    metadata: dict[str, Any] = {
        keys.ARCHITECTURE: config.architecture,
        "general.type": "model",
        keys.NAME: checkpoint.name,
        keys.FILE_TYPE: scheme.file_type,
        keys.QUANTIZATION_VERSION: 2,
        **config.to_gguf_metadata(),
        **tokenizer.to_gguf_metadata(),
        keys.BITQWEN_VERSION: __version__,
        keys.BITQWEN_SCHEME: scheme.name,
        keys.BITQWEN_SOURCE: origin.source,
    }
    optional = {
        keys.CHAT_TEMPLATE: checkpoint.chat_template,
        keys.BITQWEN_REVISION: origin.revision,
        keys.BITQWEN_SOURCE_SHA256: origin.sha256,
    }
    return metadata | {key: value for key, value in optional.items() if value is not None}
