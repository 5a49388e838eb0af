"""What the verbs print, and where: results go to stdout, all else to stderr."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitqwen.errors import BitqwenError, ModelFileError, ResourceError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

# A table in a file or a pipe has no terminal to fit into.
_PIPE_WIDTH = 120
_OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def stdout() -> Console:
    """A rich console on stdout, for tables."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def stderr() -> Console:
    """A rich console on stderr, for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str, *, quiet: bool = False) -> None:
    """Prints a remark on stderr, unless ``quiet``."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def status(text: str, *, quiet: bool = False) -> AbstractContextManager[Any]:
    """A spinner on stderr while something runs; nothing where stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        return nullcontext()
    return stderr().status(text)


def print_json(value: dict[str, Any]) -> None:
    """Prints one JSON object on stdout, on one line."""
    print(json.dumps(value, ensure_ascii=False, default=_plain), flush=True)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def size(count: float) -> str:
    """``1_117_320_736`` -> ``'1.12 GB'``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def rate(count: int, seconds: float) -> float:
    """``count`` a second; 0 where no time passed."""
    return count / seconds if seconds > 0 else 0.0


def as_bitqwen_error(error: Exception) -> BitqwenError | None:
    """What a user should read instead of an operating system's error; None if it is none of these."""
    if isinstance(error, BitqwenError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(
            "There is not enough memory.", hint="Close other programs, or ask for a smaller --context."
        )
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        kind = ResourceError if error.errno in _OUT_OF_SPACE else ModelFileError
        return kind(f"{name}{reason}.")
    return None


def report(error: Exception, *, debug: bool) -> int:
    """Prints an error on stderr and returns the exit code."""
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    known = as_bitqwen_error(error)
    if known is None:
        say(f"error: {type(error).__name__}: {error}")
        if not debug:
            say("hint: this is a fault of bitqwen; run it again with --debug and report what it prints")
        return 1
    say(f"error: {known.message}")
    if known.hint:
        say(f"hint: {known.hint}")
    return known.exit_code


def forgiving_output() -> None:
    """Lets stdout and stderr never fail on a character that the locale's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Terminated(BaseException):
    """SIGTERM has come."""


@contextmanager
def tidy_end() -> Iterator[None]:
    """Lets SIGTERM end what runs as an error does, so that unfinished files go, and the process after it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def stop(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def write(text: str) -> None:
    """Prints a piece of an answer on stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_line(text: str) -> None:
    """Prints a line on stdout, at once: what comes next may take its time."""
    print(text, flush=True)


def hub_progress(*, shown: bool) -> None:
    """Shows or hides huggingface-hub's own progress bars; it reads this once, when it is imported."""
    if not shown or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
