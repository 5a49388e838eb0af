"""A C++ compiler on this machine, and shared libraries made with it, kept by what they were made from."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bitqwen.errors import ResourceError

_TIMEOUT = 300  # seconds
_COMMON = ("-x", "c++", "-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-fvisibility=hidden")


@dataclass(frozen=True)
class Compiler:
    """``command`` starts it; ``version`` is the first line that it says of itself."""

    command: tuple[str, ...]
    version: str


@functools.cache
def find() -> Compiler | None:
    """$CXX, else g++, clang++ or c++, else the ziglang wheel's clang; None if there is none that starts."""
    candidates = [tuple(os.environ["CXX"].split())] if os.environ.get("CXX") else []
    candidates += [(path,) for name in ("g++", "clang++", "c++") if (path := shutil.which(name))]
    if importlib.util.find_spec("ziglang") is not None:
        candidates.append((sys.executable, "-m", "ziglang", "c++"))
    for command in candidates:
        try:
            result = subprocess.run(
                [*command, "--version"], capture_output=True, text=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if result.returncode == 0 and result.stdout.strip():
            return Compiler(command, result.stdout.splitlines()[0].strip())
    return None


def required() -> Compiler:
    """:func:`find`, or an error that says what to install.

    Raises:
        ResourceError: there is no compiler.
    """
    compiler = find()
    if compiler is None:
        raise ResourceError(
            "There is no C++ compiler on this machine.",
            hint="Install one: apt install g++, or pip install ziglang, which brings clang.",
        )
    return compiler


def library_folder() -> Path:
    """Where compiled kernels are kept."""
    from bitqwen.checkpoints.cache import cache_dir

    return cache_dir() / "kernels"


def shared_library(source: str, flags: tuple[str, ...], *, compiler: Compiler | None = None) -> Path:
    """Compiles C++ source into a shared library in bitqwen's cache, unless the same one is there.

    Args:
        source: all of it; it includes the standard library alone.
        flags: beside optimisation, for instruction sets.
        compiler: default: :func:`find`.

    Raises:
        ResourceError: no compiler, or it refuses the source; shows its first messages.
    """
    used = compiler or required()
    options = [*_COMMON, *flags]
    identity = "\0".join([used.version, *used.command, *options, source])
    folder = library_folder()
    target = folder / f"lut-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".compiling-") as scratch:
        text, library = Path(scratch) / "kernels.cpp", Path(scratch) / "kernels.so"
        text.write_text(source, encoding="utf-8")
        command = [*used.command, *options, str(text), "-o", str(library)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise ResourceError(f"{used.version} took longer than {_TIMEOUT} s.") from error
        if result.returncode != 0:
            errors = [line for line in result.stderr.splitlines() if "error" in line] or [
                result.stderr.strip()
            ]
            raise ResourceError(
                f"{used.version} refuses generated kernels: {errors[0]}",
                hint="Set CXX to another compiler; GCC 9 or clang 10 and later are known to work.",
            )
        library.replace(target)
    return target
