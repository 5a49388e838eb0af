"""Stop strings: end a generation at a text, wherever tokens cut it."""

from __future__ import annotations

from collections.abc import Iterable

from bitqwen.errors import UsageError

MAX_STOPS = 64
MAX_LENGTH = 1024  # characters of one


class StopStrings:
    """Passes text on until one of several strings is complete.

    The string that is complete first ends the text (of two that end together, the longer one), so that
    the result does not depend on how the text was cut into pieces. Text that may still become a stop
    string is held back, and no more than that.

    Attributes:
        matched: the string that ended the text, or ``None`` so far.

    Args:
        stops: the strings; a single one may be given bare.

    Raises:
        UsageError: an empty string, one that is no string, or too many or too long ones.
    """

    def __init__(self, stops: str | Iterable[str] | None = None) -> None:
        listed = [stops] if isinstance(stops, str) else list(stops or ())
        for stop in listed:
            if not isinstance(stop, str) or not stop or len(stop) > MAX_LENGTH:
                raise UsageError(
                    f"A stop string is {stop!r:.80}; allowed: text of 1 to {MAX_LENGTH} characters."
                )
        if len(listed) > MAX_STOPS:
            raise UsageError(f"There are {len(listed)} stop strings; allowed: up to {MAX_STOPS}.")
        self._stops = list(dict.fromkeys(listed))
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The part of the text so far that can be shown now; nothing more after a match."""
        if self.matched is not None or not text:
            return ""
        if not self._stops:
            return text
        seen = self._held + text
        end, start = min(
            ((place + len(stop), place) for stop in self._stops if (place := seen.find(stop)) >= 0),
            default=(None, len(seen)),
        )
        if end is not None:
            self.matched = seen[start:end]
            self._held = ""
            return seen[:start]
        keep = len(seen) - self._pending(seen)
        self._held = seen[keep:]
        return seen[:keep]

    def finish(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _pending(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
