"""What the user types in ``bitqwen chat``: history, editing keys, messages of several lines."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from bitqwen.errors import UsageError

_FENCE = '"""'
_HISTORY_LINES = 1000


class LineInput:
    """Reads one message at a time from stdin.

    A message ends with its line, unless the line ends with a backslash (the next line goes on) or
    begins with ``\"\"\"`` (all lines up to the closing ``\"\"\"``).
    """

    def __init__(self, history: Path | None) -> None:
        self._interactive = sys.stdin.isatty()
        self._history = history if self._interactive else None
        if self._interactive:
            _load_history(self._history)

    def read(self) -> str | None:
        """The next message; None at the end of the input.

        Raises:
            UsageError: a line that is not UTF-8.
        """
        line = self._line(">>> ")
        if line is None:
            return None
        if line.lstrip().startswith(_FENCE):
            return self._fenced(line.lstrip().removeprefix(_FENCE))
        lines = []
        while line is not None and line.endswith("\\"):
            lines.append(line.removesuffix("\\"))
            line = self._line("... ")
        return "\n".join([*lines, *([] if line is None else [line])])

    def _fenced(self, line: str | None) -> str:
        lines = []
        while line is not None:
            if line.rstrip().endswith(_FENCE):
                lines.append(line.rstrip().removesuffix(_FENCE))
                break
            lines.append(line)
            line = self._line("... ")
        return "\n".join(lines).strip("\n")

    def _line(self, prompt: str) -> str | None:
        try:
            line = input(prompt if self._interactive else "")
            line.encode("utf-8")
        except EOFError:
            return None
        except UnicodeError as error:
            raise UsageError(
                "That line is not UTF-8.", hint="Set the terminal, or convert the file, to UTF-8."
            ) from error
        return line

    def close(self) -> None:
        """Keeps the history for the next time."""
        if self._history is None:
            return
        with contextlib.suppress(ImportError, OSError):  # no readline here, or no place to write
            import readline

            self._history.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(_HISTORY_LINES)
            readline.write_history_file(self._history)
            self._history.chmod(0o600)


def _load_history(file: Path | None) -> None:
    with contextlib.suppress(ImportError, OSError):
        import readline

        readline.parse_and_bind("tab: complete")
        readline.set_completer(_complete)
        readline.set_completer_delims(" ")
        if file is not None:
            readline.read_history_file(file)


def _complete(text: str, state: int) -> str | None:
    from bitqwen.cli.chat_commands import NAMES

    matches = [name for name in NAMES if text.startswith("/") and name.startswith(text)]
    return matches[state] if state < len(matches) else None
