"""Tool calls in an answer as it is written: Qwen2.5's form, which is that of Hermes.

A model that was given tools answers with text, with calls, or with both::

    I will look that up.
    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

:class:`ToolCallParser` takes the answer in pieces of any size and tells at once what each of them means.
How the text was cut into pieces makes no difference to the result.

Nothing that the model wrote is lost. What looks like a call but is none, because it is no JSON or names no
function, is text. A call that goes wrong, or is cut off, within its arguments can no longer be taken back
from a reader of the stream: there the rest arrives as arguments too, and :class:`CallEnded` says that they
are not valid, with all that was written. :func:`parse_tool_calls`, which reads a whole answer, gives such a
call back as text. A call whose arguments are whole is a call, even if a brace or the closing tag is missing.

White space beside a call belongs to its form, and keys other than "name" and "arguments" are passed over.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from bitqwen.generation.json_scanner import JsonScanner

OPENING = "<tool_call>"
CLOSING = "</tool_call>"


@dataclass(frozen=True)
class TextPiece:
    """Text of the answer that is no part of a call."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A call whose function is known.

    Attributes:
        index: 0 for the answer's first call.
        name: of the function.
    """

    index: int
    name: str


@dataclass(frozen=True)
class ArgumentsPiece:
    """The next part of a call's arguments.

    Attributes:
        index: of the call.
        text: JSON, as the model wrote it.
    """

    index: int
    text: str


@dataclass(frozen=True)
class CallEnded:
    """The end of a call.

    Attributes:
        index: of the call.
        valid: the arguments are one JSON object.
        source: everything the model wrote for a call that is not valid, to show it as text; else empty.
    """

    index: int
    valid: bool = True
    source: str = ""


ToolCallEvent = TextPiece | CallStarted | ArgumentsPiece | CallEnded


@dataclass(frozen=True)
class ToolCall:
    """One call of a function.

    Attributes:
        name: of the function.
        arguments: a JSON object, as the model wrote it.
    """

    name: str
    arguments: str


@dataclass
class ParsedAnswer:
    """A whole answer, taken apart.

    Attributes:
        text: what is no call; calls that are not valid included.
        calls: in order.
    """

    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)


def parse_tool_calls(answer: str) -> ParsedAnswer:
    """Takes a whole answer apart."""
    parser = ToolCallParser()
    return collect([*parser.feed(answer), *parser.finish()])


def collect(events: Iterable[ToolCallEvent]) -> ParsedAnswer:
    """What the events of one answer amount to; calls that are not valid become text again."""
    parsed = ParsedAnswer()
    name, pieces = "", [""]
    for event in events:
        if isinstance(event, TextPiece):
            parsed.text += event.text
        elif isinstance(event, CallStarted):
            name, pieces = event.name, []
        elif isinstance(event, ArgumentsPiece):
            pieces.append(event.text)
        elif event.valid:
            parsed.calls.append(ToolCall(name, "".join(pieces)))
        else:
            parsed.text += event.source
    return parsed


def merge(events: Iterable[ToolCallEvent]) -> list[ToolCallEvent]:
    """The same events with neighbouring pieces joined and empty ones left out."""
    merged: list[ToolCallEvent] = []
    for (kind, index), group in itertools.groupby(events, lambda event: (type(event), _index(event))):
        if kind is TextPiece:
            text = "".join(event.text for event in group if isinstance(event, TextPiece))
            merged += [TextPiece(text)] if text else []
        elif kind is ArgumentsPiece:
            text = "".join(event.text for event in group if isinstance(event, ArgumentsPiece))
            merged += [ArgumentsPiece(index, text)] if text else []
        else:
            merged += group
    return merged


def _index(event: ToolCallEvent) -> int:
    return -1 if isinstance(event, TextPiece) else event.index


class ToolCallParser:
    """Finds the calls in an answer that arrives in pieces."""

    def __init__(self) -> None:
        self._calls = 0
        self._events: list[ToolCallEvent] = []
        self._call: _Call | None = None
        self._space = ""  # white space that a call may still follow
        self._tag = ""  # the beginning of what may be a tag
        self._beside_call = False  # nothing but white space since the last call
        self._unclosed = False  # that call's closing tag may still come
        self._finished = False

    def feed(self, text: str) -> list[ToolCallEvent]:
        """The events that ``text`` brings about.

        Raises:
            ValueError: the parser was finished.
        """
        if self._finished:
            raise ValueError("a finished parser takes no more text")
        for character in text:
            self._take(character)
        return self._drain()

    def finish(self) -> list[ToolCallEvent]:
        """What was held back, now that nothing follows; a call that is still open ends here."""
        if not self._finished:
            self._finished = True
            if self._call is not None:
                self._call.cut()
                self._leave(self._call)
            if not (self._unclosed and CLOSING.startswith(self._tag)):
                self._say(self._tag)
            if not self._beside_call:
                self._events.append(TextPiece(self._space))
        return self._drain()

    def _drain(self) -> list[ToolCallEvent]:
        events, self._events = merge(self._events), []
        return events

    def _take(self, character: str) -> None:
        if self._call is not None:
            taken = self._call.take(character)
            self._events += self._call.drain()
            if self._call.ended:
                self._leave(self._call)
            if taken:
                return
        tag = self._tag + character
        tags = (OPENING, CLOSING) if self._unclosed else (OPENING,)
        if tag == OPENING:
            before = "" if self._beside_call else self._space
            self._call = _Call(self._calls, before)
            self._tag = self._space = ""
        elif tag == CLOSING and self._unclosed:
            self._unclosed = False
            self._tag = self._space = ""
        elif any(one.startswith(tag) for one in tags):
            self._tag = tag
        elif self._tag:
            # Both tags begin with the only "<" in them, so only this character may begin another one.
            self._say(self._tag)
            self._tag = ""
            self._take(character)
        else:
            self._say(character)

    def _say(self, text: str) -> None:
        """Text that is no part of a call; white space at its end waits."""
        stripped = text.rstrip()
        if stripped:
            before = "" if self._beside_call else self._space
            self._events.append(TextPiece(before + stripped))
            self._beside_call = self._unclosed = False
            self._space = ""
        self._space += text[len(stripped) :]

    def _leave(self, call: _Call) -> None:
        self._call = None
        self._events += call.drain()
        self._calls += call.started
        self._beside_call = call.valid
        self._unclosed = call.valid and not call.closed
        self._say(call.rest)


class _Call:
    """One call, from its opening tag on.

    Attributes:
        started: it is known to be one.
        ended: nothing more belongs to it.
        valid: it has ended and is a call.
        closed: its closing tag has been read.
        rest: once it has ended, the text in it that is not part of the call.
    """

    def __init__(self, index: int, before: str) -> None:
        self.started = self.ended = self.valid = self.closed = False
        self.rest = ""
        self._index = index
        self._before = before + OPENING
        self._events: list[ToolCallEvent] = []
        self._scanner = JsonScanner()
        self._text: list[str] = []  # characters after the opening tag
        self._from = 0  # where in them the key or value being read begins
        self._key = ""
        self._name: str | None = None
        self._arguments: list[str] | None = None  # those not yet told; None before they begin
        self._whole_at = 0  # where the arguments have ended
        self._broken = False
        self._tag = ""  # of a broken call: the beginning of what may be its closing tag

    def drain(self) -> list[ToolCallEvent]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def take(self, character: str) -> bool:
        """Goes on with ``character``; returns whether it belongs to the call."""
        if self._broken:
            self._take_broken(character)
            return True
        before = (self._scanner.depth, self._scanner.in_string, self._scanner.value_due)
        if not (self._scanner.feed(character) and self._follow(character, *before)):
            return self._break(character)
        self._text.append(character)
        if self._scanner.done:
            self._end()
        return True

    def cut(self) -> None:
        """Nothing follows."""
        if not self.started or self._whole_at:
            self._end(self._whole_at if self.started else 0)
        else:
            self._end_invalid()

    def _follow(self, character: str, depth: int, was_string: bool, value_due: bool) -> bool:
        """Keeps track of names and arguments; returns whether ``character`` is possible in a call.

        Args:
            character: JSON so far.
            depth: before it.
            was_string: before it, a string was being read.
            value_due: before it, a value was to come.
        """
        scanner, key = self._scanner, self._key
        if depth == 1 and scanner.in_string and not was_string:
            self._from = len(self._text)
        if depth == 1 and value_due and not scanner.value_due:
            if key == "name":
                return character == '"' and self._name is None
            if key == "arguments":
                if self._arguments is not None or character not in '{"n':
                    return False
                self._arguments = []
        if depth == 1 and was_string and not scanner.in_string:
            return self._end_string(json.loads("".join(self._text[self._from :]) + character))
        if key == "arguments" and not self._whole_at and self._arguments is not None:
            if scanner.depth > 1 or depth > 1:
                self._arguments.append(character)
                if scanner.depth == 1:
                    self._whole_at = len(self._text) + 1
                self._tell()
            elif not scanner.in_string and scanner.between_values:
                self._take_arguments("{}")  # null
        return True

    def _end_string(self, value: str) -> bool:
        if self._scanner.in_key:
            self._key = value
        elif self._key == "name":
            if not value or any("\ud800" <= character <= "\udfff" for character in value):
                return False
            self._name = value
            self._tell()
        elif self._key == "arguments":
            if not _is_object(value):
                return False
            self._take_arguments(value)
        return True

    def _take_arguments(self, arguments: str) -> None:
        self._arguments = [arguments]
        self._whole_at = len(self._text) + 1
        self._tell()

    def _tell(self) -> None:
        if self._name is None or not self._arguments:
            return
        if not self.started:
            self.started = True
            self._events.append(CallStarted(self._index, self._name))
        self._events.append(ArgumentsPiece(self._index, "".join(self._arguments)))
        self._arguments = []

    def _break(self, character: str) -> bool:
        if self.started and not self._whole_at:
            self._broken = True
            self._take_broken(character)
            return True
        self._end(self._whole_at if self.started else 0)
        return False

    def _take_broken(self, character: str) -> None:
        self._text.append(character)
        self._tag += character
        if self._tag == CLOSING:
            self.closed = True
            self._end_invalid()
        elif not CLOSING.startswith(self._tag):
            told = len(self._tag) - (character == "<")
            self._events.append(ArgumentsPiece(self._index, self._tag[:told]))
            self._tag = self._tag[told:]

    def _end(self, rest_from: int | None = None) -> None:
        """Ends the call.

        Args:
            rest_from: where the text begins that is not part of it; ``None`` if there is none.
        """
        if self._name is not None and self._arguments is None and self._scanner.done:
            self._take_arguments("{}")  # a function without any
        self.ended, self.valid = True, self.started
        if self.started:
            self._events.append(CallEnded(self._index))
            self.rest = "" if rest_from is None else "".join(self._text[rest_from:])
        else:
            self.rest = self._before + "".join(self._text)

    def _end_invalid(self) -> None:
        self.ended = True
        told = "" if self.closed else self._tag
        self._events.append(ArgumentsPiece(self._index, told))
        self._events.append(CallEnded(self._index, False, self._before + "".join(self._text)))


def _is_object(text: str) -> bool:
    scanner = JsonScanner()
    return all(map(scanner.feed, text.strip())) and scanner.done
