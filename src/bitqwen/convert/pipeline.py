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
from bitqwen.gguf import GGUFWriter, TensorType, keys, type_info
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


# Two roundings of one matrix differ by less than this share of its energy even at 2 bits; two different
# matrices by about 2.
_SAME_MATRIX = 0.25
_COMPARED = 256  # rows compared
_SOURCE_BITS = {t.name: type_info(t).bits_per_weight for t in TensorType}


class _Job(NamedTuple):
    spec: TensorSpec
    plan: TensorPlan
    source: str  # the tensor to read


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
        for spec, plan, _ in jobs:
            writer.add_tensor(spec.gguf_name, spec.shape, plan.tensor_type)
        report.nbytes = writer.nbytes
        writer.begin()
        total = sum(4 * int(np.prod(job.spec.shape)) for job in jobs)
        done = 0
        for job in jobs:
            if progress:
                progress(Progress(job.spec.gguf_name, done, total, report.last))
            report.tensors.append(_convert_tensor(checkpoint, job, writer, threads or 0))
            done += 4 * int(np.prod(job.spec.shape))
        writer.finish()
        if progress:
            progress(Progress("", total, total, report.last))
    report.seconds = time.perf_counter() - started
    return report


def _plan(
    checkpoint: Checkpoint, config: Qwen2Config, scheme: Scheme, embedding: str | None, head: str | None
) -> list[_Job]:
    present = set(checkpoint.names())
    shared = _shared_embedding(checkpoint, config)
    jobs = []
    for spec in config.tensors():
        if spec.hf_name not in present or (shared and spec.hf_name == _HEAD):
            continue
        plan = scheme.plan(spec.role, spec.shape, embedding=embedding, head=head)
        jobs.append(_Job(spec, plan, shared if shared and spec.hf_name == _EMBEDDING else spec.hf_name))
    return jobs


def _shared_embedding(checkpoint: Checkpoint, config: Qwen2Config) -> str | None:
    """The tensor to write once for embedding and head, if the source's two are one matrix.

    A quantised file may hold a tied matrix twice, in two types: then the wider one is the better copy.
    """
    if _HEAD not in checkpoint.names():
        return None
    if config.tied:
        return _EMBEDDING
    rows = checkpoint.shape(_EMBEDDING)[0]
    difference = energy = 0.0
    for begin in range(0, rows, max(1, rows // _COMPARED)):
        one, other = (checkpoint.read(name, begin, begin + 1) for name in (_EMBEDDING, _HEAD))
        difference += float(np.square(one - other).sum())
        energy += float(np.square(other).sum())
    if difference > _SAME_MATRIX * energy:
        return None
    widths = {name: _SOURCE_BITS.get(checkpoint.dtype(name), 0.0) for name in (_EMBEDDING, _HEAD)}
    return _HEAD if widths[_HEAD] > widths[_EMBEDDING] else _EMBEDDING


def _convert_tensor(checkpoint: Checkpoint, job: _Job, writer: GGUFWriter, threads: int) -> TensorReport:
    started = time.perf_counter()
    spec, plan, source = job
    nbytes, error, energy = 0, 0.0, 0.0

    def parts() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal nbytes, error, energy
        for begin, end in _pieces(spec, plan):
            encoded = _encode(checkpoint.read(source, begin, end), job, threads)
            nbytes += encoded.data.nbytes
            error += encoded.error
            energy += encoded.energy
            yield encoded.data

    writer.write_parts(spec.gguf_name, parts())
    checkpoint.release(source)
    return TensorReport(
        name=spec.gguf_name,
        role=spec.role,
        shape=spec.shape,
        source_type=checkpoint.dtype(source),
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
            f"tensor {job.source} holds values that are not finite numbers (NaN or infinity)",
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
