"""Runs programs that a model wrote, in a process that can do little harm.

Each program gets a fresh Python process with only the standard library, a temporary folder of its own, no
environment and no input. :mod:`bitqwen.measure.tasks.sandbox_child` gives up, before the program starts,
what the process could otherwise do: the network, other processes, all files but the interpreter's (to
read) and the temporary folder, more than some memory, processor time and disk space. Of these the kernel
must offer seccomp and Landlock (Linux 5.13); what it does not offer, :class:`Isolation` says. This side
ends the program when its time is up.

It is a safety net for programs that go wrong, as generated ones do, not a prison for an attacker who knows
a hole in the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bitqwen.errors import UsageError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MAX_REPORT_BYTES = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall-clock time; many times that of the processor's, so that a busy machine fails no
            program that a quiet one passes.
        cpu_seconds: of processor time.
        memory: bytes of address space.
        file_bytes: size of a file that it writes.
        open_files: how many at once.
    """

    seconds: float = 60.0
    cpu_seconds: int = 10
    memory: int = 1 << 30
    file_bytes: int = 1 << 20
    open_files: int = 32


@dataclass(frozen=True)
class Isolation:
    """What was taken from a program before it ran; the limits of :class:`Limits` hold always.

    Attributes:
        network: it cannot reach the network.
        files: it can write to its own folder only and read little else.
        processes: it can neither start processes nor signal others.
    """

    network: bool = False
    files: bool = False
    processes: bool = False

    def missing(self) -> list[str]:
        """What this machine could not take from it."""
        return [field.name for field in fields(self) if not getattr(self, field.name)]


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: "passed" if it ran to its end without an exception.
        detail: of a failure: the exception, or the signal.
        isolation: what had been taken from it; ``None`` if it was ended before it said so.
    """

    status: Literal["passed", "failed", "timed out"]
    detail: str
    isolation: Isolation | None


def run_program(program: str, limits: Limits | None = None) -> Outcome:
    """Runs a Python program in a sandbox.

    Args:
        program: its source; ``__name__`` is not "__main__" in it.
        limits: what it may use.

    Raises:
        UsageError: not on Linux.
    """
    if sys.platform != "linux":
        raise UsageError("Generated programs are run on Linux only: there is no sandbox elsewhere.")
    limits = limits or Limits()
    # Only a process that reached the end of its program knows what to write.
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="bitqwen-sandbox-", ignore_cleanup_errors=True) as folder:
        source = Path(folder) / "program.py"
        source.write_text(program, encoding="utf-8", errors="replace")
        settings = json.dumps({**vars(limits), "token": token, "folder": folder, "program": str(source)})
        report, killed, code = _run(settings, folder, limits.seconds)
    return _outcome(report, token, killed=killed, code=code)


def _run(settings: str, folder: str, seconds: float) -> tuple[bytes, bool, int]:
    """What the child reported, whether its time was up, and its exit code."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        try:
            process = subprocess.Popen(
                # -I and -S: no environment, no user's or site's packages; -B: no files beside the source.
                [sys.executable, "-I", "-S", "-B", str(_CHILD), str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writing,),
                cwd=folder,
                env={"LC_ALL": "C.UTF-8", "TMPDIR": folder, "HOME": folder},
                start_new_session=True,
            )
        finally:
            os.close(writing)
        killed = threading.Event()

        def end() -> None:
            killed.set()
            _kill_group(process.pid)

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it ended already; its exit code says more
                process.stdin.write(settings.encode())
                process.stdin.close()
            report = pipe.read(_MAX_REPORT_BYTES)
            code = process.wait()
        finally:
            timer.cancel()
            _kill_group(process.pid)
            process.wait()
    return report, killed.is_set(), code


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left
        os.killpg(group, signal.SIGKILL)


def _outcome(report: bytes, token: str, *, killed: bool, code: int) -> Outcome:
    lines = report.decode("utf-8", "replace").splitlines()
    isolation = _isolation(lines[0]) if lines else None
    last = lines[-1] if len(lines) > 1 else ""
    if last == f"passed {token}":
        return Outcome("passed", "", isolation)
    if killed or code == -signal.SIGXCPU:
        return Outcome("timed out", "", isolation)
    if last.startswith("failed "):
        return Outcome("failed", last.removeprefix("failed "), isolation)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return Outcome("failed", how, isolation)


def _isolation(line: str) -> Isolation:
    try:
        given: Any = json.loads(line)
        return Isolation(**{field.name: given[field.name] is True for field in fields(Isolation)})
    except (ValueError, KeyError, TypeError, RecursionError):
        return Isolation()
