"""The steps of a set-up, what they need, and the running of those that are not done yet."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import bitqwen
from bitqwen import quant
from bitqwen.checkpoints.configs import read_config
from bitqwen.checkpoints.sources import is_hub_id, resolve
from bitqwen.convert import Progress, convert
from bitqwen.convert.sizes import converted_bytes
from bitqwen.engine import memory
from bitqwen.engine.model import DEFAULT_CONTEXT
from bitqwen.errors import ModelFileError, ResourceError, UsageError
from bitqwen.gguf import GGUFFile
from bitqwen.kernels import TARGETS, candidates, generate, plans, products, tuner
from bitqwen.kernels.targets import runs_here
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.models.registry import config_from_hf

from .state import State, digest

# The vocabulary and the metadata of a converted file.
_METADATA_BYTES = 8 << 20
_QUESTION = "Say hello in one short sentence."
_ANSWER_TOKENS = 24
# bitnet.cpp's names: both are the ternary layout, and a hint which look-up tables were meant.
_LUT_TYPES = {"tl1": "ternary", "tl2": "ternary"}


class QuantType(NamedTuple):
    """What ``--quant-type`` means: a scheme, and the family of kernels that the file names as a hint."""

    name: str
    scheme: str
    hint: str | None


def quant_type(name: str) -> QuantType:
    """A quantisation by bitnet.cpp's name (tl1, tl2) or by a scheme's.

    Raises:
        UsageError: neither.
    """
    lower = name.lower()
    if lower in _LUT_TYPES:
        return QuantType(lower, _LUT_TYPES[lower], lower)
    if lower not in quant.names():
        allowed = [*_LUT_TYPES, *quant.names()]
        raise UsageError(f"quant type {name!r} is not known.", hint="Allowed: " + ", ".join(allowed) + ".")
    return QuantType(lower, lower, None)


class Needs(NamedTuple):
    """Bytes: what may have to be fetched, what the result takes on disk, and memory to run it."""

    fetch: int
    disk: int
    free_disk: int
    memory: int
    free_memory: int


class Step(NamedTuple):
    """One step as it ended: its name, whether it was done before, and what came of it."""

    name: str
    skipped: bool
    result: str


@dataclass(frozen=True)
class _Job:
    source: str
    folder: Path
    kind: QuantType
    config: Qwen2Config
    threads: int | None
    hub: dict[str, Any]

    @property
    def output(self) -> Path:
        return self.folder / f"ggml-model-{self.kind.name}-qwen25.gguf"


def needs(config: Qwen2Config, source: str, folder: Path, kind: QuantType) -> Needs:
    """What a set-up takes, from the configuration alone."""
    weights = converted_bytes(config, kind.scheme)
    context = min(DEFAULT_CONTEXT, config.max_context)
    fetch = converted_bytes(config, "f16") if is_hub_id(source) else 0
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    return Needs(
        fetch=fetch,
        disk=weights + _METADATA_BYTES,
        free_disk=shutil.disk_usage(existing).free,
        memory=sum(memory.estimate(config, weights=weights, context=context).values()),
        free_memory=memory.available(),
    )


def default_folder(source: str) -> Path:
    """``Qwen/Qwen2.5-7B-Instruct`` -> ``models/qwen2.5-7b``."""
    name = source.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1].lower()
    return Path("models") / name.removesuffix(".gguf").removesuffix("-instruct")


def run(
    source: str,
    kind: QuantType,
    *,
    folder: Path | None = None,
    threads: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    announce: Callable[[Needs, Path], None] | None = None,
    begin: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Step]:
    """Sets a model up: checks, fetches, generates kernels, converts, tunes, tries the result.

    Stopped and run again, it goes on with the step that was not done.

    Args:
        source: a hub id, a checkpoint folder, a GGUF file or ``package:NAME``.
        kind: how to store it.
        folder: where results go; by default ``models/NAME``.
        threads: of conversion, tuning and trial; default: one per core.
        revision: a hub id's branch, tag or commit.
        token: for gated repositories.
        offline: use only what the caches hold.
        announce: told what is needed, before anything large is done.
        begin: told each step's name as it begins.
        progress: told how the conversion goes on.

    Raises:
        ResourceError: too little disk or memory.
        BitqwenError: a step failed; those before it stay done.
    """
    hub: dict[str, Any] = {"revision": revision, "token": token, "offline": offline}
    config = config_from_hf(read_config(source, **hub), source=source)
    job = _Job(source, folder or default_folder(source), kind, config, threads, hub)
    state = State(job.folder, source)
    required = needs(config, source, job.folder, kind)
    if announce:
        announce(required, job.output)
    if not job.output.exists():
        _check(required)
    steps = []
    say = begin or (lambda _: None)
    say("fetch")
    local, provenance = resolve(source, **hub)
    steps.append(Step("fetch", provenance.kind in {"folder", "gguf"}, str(local)))
    say("kernels")
    steps.append(_generate(job, state))
    say("convert")
    steps.append(_convert(job, state, local, progress))
    say("tune")
    steps.append(_tune(job))
    say("try")
    steps.append(Step("try", False, _try(job)))
    return steps


def _check(required: Needs) -> None:
    if required.disk > required.free_disk:
        raise ResourceError(
            f"The result takes {required.disk / 1e9:.1f} GB; {required.free_disk / 1e9:.1f} GB are free.",
            hint="Free some space, give another --output, or a quant type of fewer bits.",
        )
    if required.memory > required.free_memory:
        raise ResourceError(
            f"Running it takes {required.memory / 1e9:.1f} GB of memory; "
            f"{required.free_memory / 1e9:.1f} GB are available.",
            hint="Take a smaller model or a quant type of fewer bits: bitqwen inspect --fit SIZE lists them.",
        )


def _generate(job: _Job, state: State) -> Step:
    """Kernels for this machine's families, and for the family that the quant type names."""
    folder = job.folder / "kernels"
    named = {"tl1": ["arm"], "tl2": ["x86", "avx512"]}.get(job.kind.name, [])
    targets = [t for t in TARGETS.values() if t.name in named or (not named and runs_here(t))]
    made = []
    for target in targets:
        command = f"bitqwen kernels generate {job.source} --target {target.name} --output DIR"
        try:
            made.append(generate(job.config, target, model=job.folder.name, command=command))
        except UsageError as error:
            return Step("kernels", False, f"none: {error.message}")
    inputs = digest([each.header for each in made])
    if state.done("kernels", inputs):
        return Step("kernels", True, str(folder))
    state.record("kernels", inputs, [path for each in made for path in each.write(folder)])
    return Step("kernels", False, str(folder))


def _convert(job: _Job, state: State, local: Path, progress: Callable[[Progress], None] | None) -> Step:
    files = [local] if local.is_file() else sorted(file for file in local.iterdir() if file.is_file())
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    inputs = digest(bitqwen.__version__, job.kind, facts)
    if state.done("convert", inputs):
        return Step("convert", True, str(job.output))
    job.folder.mkdir(parents=True, exist_ok=True)
    hub = job.hub | {"offline": True} if is_hub_id(job.source) else job.hub
    report = convert(
        job.source,
        job.output,
        job.kind.scheme,
        kernel_hint=job.kind.hint,
        threads=job.threads,
        progress=progress,
        **hub,
    )
    state.record("convert", inputs, [job.output])
    warnings = "".join(f"; warning: {warning}" for warning in report.warnings)
    return Step("convert", False, f"{job.output}{warnings}")


def _tune(job: _Job) -> Step:
    """The fastest kernels here for the converted model, unless they are known."""
    place = plans.here(job.threads)
    found = products.of_file(GGUFFile(job.output))
    known = plans.load(place)
    if all((product.key, batch) in known for product in found for batch in plans.BATCHES):
        return Step("tune", True, str(place.path))
    generated = candidates.compiled(found).libraries
    path = plans.save(place, tuner.tune(found, threads=place.threads, generated=generated))
    return Step("tune", False, str(path))


def _try(job: _Job) -> str:
    """What the model answers; proves that the file loads, computes finite numbers and makes text."""
    model = bitqwen.load(job.output, threads=job.threads, context=min(512, job.config.max_context))
    messages = [{"role": "user", "content": _QUESTION}]
    answer = model.generate(messages, max_tokens=_ANSWER_TOKENS, temperature=0.0)
    if not answer.tokens:
        raise ModelFileError(
            f"{job.output} loads, but answers nothing.", hint="Convert it with --quant-type w4."
        )
    return f"{_QUESTION} -> {answer.text.strip()!r}"
