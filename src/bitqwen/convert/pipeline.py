"""The one way from a checkpoint to a GGUF file: read, quantise, check, write; tensor by tensor."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint, open_checkpoint
from bitqwen.checkpoints.gguf import GGUFCheckpoint
from bitqwen.errors import CheckpointError, UsageError
from bitqwen.gguf import GGUFWriter, TensorType, codebook_name, codebook_shape, keys
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import Encoded, Rotation, Scheme, Statistics, TensorPlan, quantize, schemes

from .calibration import CalibratedMatrices, Calibration, Quantizer
from .metadata import file_metadata
from .plan import Job, file_type, head_of, plan_tensors
from .report import ConversionReport, Progress, ProgressCallback, TensorReport, peak_rss
from .ternary import ternary_levels

# Larger matrices are converted in pieces of rows, so that memory does not grow with the vocabulary.
_PIECE_VALUES = 32 << 20
# Of the matrices' energy: beyond it models of full precision write nonsense.
_RUINOUS_ERROR = 0.1


def convert(
    source: str | PathLike[str],
    output: str | PathLike[str],
    scheme: str = "w4",
    *,
    embedding: str | None = None,
    head: str | None = None,
    calibration: Calibration | None = None,
    plans: Mapping[str, TensorPlan] | None = None,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
    kernel_hint: str | None = None,
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
        calibration: quantises the layers' matrices by what their inputs are on a text, instead of by their
            values alone; see :class:`bitqwen.calibrate.Calibration`.
        plans: how to store single tensors, by their Hugging Face names, instead of the scheme's way.
        importance: how much the error of each column weighs, float32 [cols], for tensors of which
            calibration says nothing, by their Hugging Face names.
        kernel_hint: a family of kernels ("tl1", "tl2") to note in the settings; the layout is the same.
        force: convert with "bitnet" a model that was not trained for it.
        threads: default: one per core.
        revision: a hub id's branch, tag or commit.
        token: for gated repositories.
        offline: use only what the cache holds.
        progress: called as tensors are read; see :class:`Progress`.

    Raises:
        UsageError: an unknown scheme or type; "bitnet" without ``force``; output is the source.
        CheckpointError: tensors missing, unexpected, mis-shaped, not finite, or beyond the type's range.
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
    warnings = [*_check_levels(checkpoint, config, chosen, force), *_requantising(checkpoint)]
    jobs = plan_tensors(checkpoint, config, chosen, embedding=embedding, head=head, plans=plans)
    given = {"embedding": embedding, "head": head, "kernel_hint": kernel_hint}
    settings = {name: value for name, value in given.items() if value}
    last = head_of(jobs)
    if calibration is not None:
        jobs.remove(last)
        jobs.append(last)  # what it gets to see is known after the last layer
    multiplied = [job for job in jobs if job.spec.role == "matrix" or job is last]
    matrices = {job.source: job.plan for job in multiplied}
    rotation = Rotation.none()
    if calibration is None or calibration.rotates:
        rotation = Rotation.of(matrices, {job.source: job.spec.shape[1] for job in multiplied})
    encoder = None
    if calibration is not None:
        settings |= calibration.settings
        encoder = calibration.start(
            checkpoint, config, matrices, rotation, output=target, threads=threads or 0
        )
    calibrated = CalibratedMatrices(encoder)
    total = sum(4 * job.weights for job in jobs)
    name = chosen.name if plans is None else "mixed"
    report = ConversionReport(path=target, scheme=name, warnings=warnings)

    draft = encoder.draft if encoder else None
    with _temporary(draft), GGUFWriter(draft or target) as writer:
        if progress:
            progress(Progress("source checksum", 0, total))
        writer.add_metadata(
            file_metadata(checkpoint, config, scheme=name, file_type=file_type(jobs), settings=settings)
        )
        if rotation.names:
            rotated = [job.spec.gguf_name for job in jobs if job.source in rotation.names]
            writer.add_metadata({keys.ROTATED: rotated})
            writer.add_tensor(keys.SIGNS, rotation.signs.shape, TensorType.I8)
        for job in jobs:
            writer.add_tensor(job.spec.gguf_name, job.spec.shape, job.plan.tensor_type)
            codebook = codebook_shape(job.plan.tensor_type)
            if codebook:
                writer.add_tensor(codebook_name(job.spec.gguf_name), codebook, TensorType.I8)
        report.nbytes = writer.nbytes
        writer.begin()
        if rotation.names:
            writer.write(keys.SIGNS, rotation.signs)
        done = 0
        for job in jobs:
            if progress:
                progress(Progress(job.spec.gguf_name, done, total, report.last))

            def advance(values: int, job: Job = job, done: int = done) -> None:
                if progress and values < job.weights:
                    progress(Progress(job.spec.gguf_name, done + 4 * values, total))

            ready = calibrated.take(job.source)
            if ready is None:
                quantizer = encoder.head() if encoder and job is last else None
                if quantizer is None:
                    weights = (importance or {}).get(job.spec.hf_name)
                    quantizer = _quantizer(weights, rotation.of_matrix(job.source))
                tensor = _convert_tensor(checkpoint, job, writer, quantizer, threads or 0, advance)
            else:
                tensor = _write_encoded(checkpoint, job, writer, *ready)
            report.tensors.append(tensor)
            done += 4 * job.weights
        writer.finish()
        if encoder is not None:
            if draft is not None:
                encoder.refine(
                    target, lambda what: progress(Progress(what, done, total)) if progress else None
                )
            encoder.finish()
        if progress:
            progress(Progress("", total, total, report.last))
    if encoder is None and report.relative_error > _RUINOUS_ERROR:
        report.warnings.append(
            f"{report.relative_error:.0%} of the matrices' energy is lost: unless it is trained for so few "
            "levels, a model then writes nonsense; w4 does not"
        )
    report.seconds = time.perf_counter() - started
    report.peak_rss = peak_rss()
    return report


@contextlib.contextmanager
def _temporary(path: Path | None) -> Iterator[None]:
    """A file that goes when the block ends, however that is."""
    try:
        yield
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _convert_tensor(
    checkpoint: Checkpoint,
    job: Job,
    writer: GGUFWriter,
    quantizer: Quantizer,
    threads: int,
    advance: Callable[[int], None],
) -> TensorReport:
    started = time.perf_counter()
    spec, plan, source = job
    nbytes, error, energy = 0, 0.0, 0.0
    codebook: npt.NDArray[np.int8] | None = None

    def parts() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal nbytes, error, energy, codebook
        values = 0
        for begin, end in _pieces(job):
            piece = checkpoint.read(source, begin, end)
            values += piece.size
            encoded = _encode(piece, job, begin, threads, quantizer)
            del piece
            nbytes += encoded.data.nbytes
            error += encoded.error
            energy += encoded.energy
            codebook = encoded.codebook
            yield encoded.data
            advance(values)

    writer.write_parts(spec.gguf_name, parts())
    if codebook is not None:
        writer.write(codebook_name(spec.gguf_name), codebook)
        nbytes += codebook.nbytes
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


def _write_encoded(
    checkpoint: Checkpoint, job: Job, writer: GGUFWriter, encoded: Encoded, lost_outputs: float | None
) -> TensorReport:
    started = time.perf_counter()
    spec, plan, source = job
    if not (math.isfinite(encoded.energy) and math.isfinite(encoded.error)):
        _encode(checkpoint.read(source), job, 0, 1, _quantizer(None))  # says what is wrong with it
    writer.write_parts(spec.gguf_name, iter([encoded.data]))
    if encoded.codebook is not None:
        writer.write(codebook_name(spec.gguf_name), encoded.codebook)
    return TensorReport(
        name=spec.gguf_name,
        role=spec.role,
        shape=spec.shape,
        source_type=checkpoint.dtype(source),
        tensor_type=plan.tensor_type.name,
        nbytes=encoded.data.nbytes + (0 if encoded.codebook is None else encoded.codebook.nbytes),
        error=encoded.error,
        energy=encoded.energy,
        seconds=time.perf_counter() - started,
        lost_outputs=lost_outputs,
    )


def _pieces(job: Job) -> Iterator[tuple[int, int | None]]:
    """Rows to convert at a time: a whole tensor, or pieces of a large one."""
    shape = job.spec.shape
    if len(shape) == 1 or job.plan.method in ("absmean", "lloyd"):  # one scale, one codebook for all rows
        yield 0, None
        return
    rows = max(1, _PIECE_VALUES // shape[1])
    for begin in range(0, shape[0], rows):
        yield begin, min(begin + rows, shape[0])


def _quantizer(importance: npt.NDArray[np.float32] | None, rotation: Rotation | None = None) -> Quantizer:
    statistics = None if importance is None else Statistics(importance)
    if rotation is not None and statistics is not None:
        statistics = rotation.statistics(statistics)

    def run(rows: npt.NDArray[np.float32], plan: TensorPlan, threads: int) -> Encoded:
        if rotation is not None:
            rows = rotation.turned(rows, threads=threads)
        return quantize(rows, plan.tensor_type, method=plan.method, statistics=statistics, threads=threads)

    return run


def _encode(
    values: npt.NDArray[np.float32], job: Job, first_row: int, threads: int, quantizer: Quantizer
) -> Encoded:
    encoded = quantizer(values, job.plan, threads)
    if not math.isfinite(encoded.energy):
        place = np.argwhere(~np.isfinite(values))[0].tolist()
        value = values[tuple(place)]
        place[0] += first_row
        raise CheckpointError(
            f"tensor {job.source} holds values that are not finite numbers: {value} at {place}",
            hint="The checkpoint is damaged or its training diverged: fetch it again, or use another.",
        )
    if not math.isfinite(encoded.error):
        raise CheckpointError(
            f"tensor {job.source} holds values up to {np.abs(values).max():.3g}, beyond what "
            f"{job.plan.tensor_type.name} can hold",
            hint="Use a scheme of another type; for embedding and head, --embedding bf16 and --head bf16.",
        )
    return encoded


def _check_levels(checkpoint: Checkpoint, config: Qwen2Config, scheme: Scheme, force: bool) -> list[str]:
    """Refuses, unless forced, what is not trained for the scheme; returns warnings."""
    if not scheme.needs_force:
        return []
    levels = ternary_levels(checkpoint, config)
    if levels == "matrix":
        return []
    if levels == "group":
        what = "this one has three levels with a scale for each group of weights, which would be lost"
        cure = "Use --scheme ternary, which keeps them"
    else:
        what = "this one was not, and plain rounding gives gibberish"
        cure = "Use --scheme w4"
    if not force:
        raise UsageError(
            f"scheme '{scheme.name}' is for models trained for three levels with one scale a matrix; {what}",
            hint=f"{cure}; --force converts it all the same.",
        )
    return [f"scheme '{scheme.name}' is for models trained for it; {what}; written because it was forced"]


def _requantising(checkpoint: Checkpoint) -> list[str]:
    types = {checkpoint.dtype(name) for name in checkpoint.names()} - {"F32", "F16", "BF16"}
    if not types:
        return []
    return [
        f"requantising from {', '.join(sorted(types))}: the source has lost precision before; "
        "convert from the original checkpoint for the best result"
    ]
