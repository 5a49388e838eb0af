"""JSON read one character at a time: is it still JSON, and is it whole?"""

from __future__ import annotations

import re
from typing import Literal

MAX_DEPTH = 128
"""Nesting beyond this is refused: Python's own parser recurses."""

_WHITESPACE = " \t\n\r"
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_LITERALS = {"t": "true", "f": "false", "n": "null"}
_CLOSES = {"{": "}", "[": "]"}

_State = Literal[
    "value", "value or ]", "key or }", "key", "colon", "after", "string", "escape", "hex", "number", "literal"
]


class JsonScanner:
    """Follows one JSON object (RFC 8259) as it is written.

    Attributes:
        depth: open objects and arrays.
        done: the object is closed; nothing may follow.
        in_key: the string being read, or just read, is a key.
    """

    def __init__(self) -> None:
        self.done = False
        self.in_key = False
        self._open: list[str] = []
        self._state: _State = "value"
        self._word = ""  # of a number or literal, so far
        self._hex_left = 0

    @property
    def depth(self) -> int:
        """How many objects and arrays are open."""
        return len(self._open)

    @property
    def in_string(self) -> bool:
        """Whether the next character belongs to a string."""
        return self._state in {"string", "escape", "hex"}

    @property
    def value_due(self) -> bool:
        """Whether a value comes next and has not begun."""
        return self._state == "value"

    @property
    def between_values(self) -> bool:
        """Whether a value has just ended; a number ends with the character after it."""
        return self._state == "after"

    def feed(self, character: str) -> bool:
        """Takes one character; returns whether the text so far can begin a JSON object.

        After ``False`` the scanner is of no further use.
        """
        if self.done:
            return False
        if not self._open and self._state == "value":
            return character in _WHITESPACE or (character == "{" and self._begin(character))
        if self.in_string:
            return self._in_string(character)
        if self._state == "number":
            if character in "+-.eE" or "0" <= character <= "9":
                self._word += character
                return len(self._word) <= 1000
            if not _NUMBER.fullmatch(self._word):
                return False
            self._state = "after"
        elif self._state == "literal":
            return self._in_literal(character)
        if character in _WHITESPACE:
            return True
        return self._between(character)

    def _in_string(self, character: str) -> bool:
        if self._state == "string":
            if character == '"':
                self._state = "colon" if self.in_key else "after"
            elif character == "\\":
                self._state = "escape"
            else:
                return character >= " "
        elif self._state == "escape":
            self._state = "hex" if character == "u" else "string"
            self._hex_left = 4
            return character in 'u"\\/bfnrt'
        else:
            self._hex_left -= 1
            if self._hex_left == 0:
                self._state = "string"
            return character in "0123456789abcdefABCDEF"
        return True

    def _in_literal(self, character: str) -> bool:
        literal = _LITERALS[self._word[0]]
        self._word += character
        if self._word == literal:
            self._state = "after"
        return literal.startswith(self._word)

    def _between(self, character: str) -> bool:
        state = self._state
        if state == "colon":
            self._state = "value"
            return character == ":"
        if state == "after" or (state, character) in {("value or ]", "]"), ("key or }", "}")}:
            return self._close_or_continue(character)
        if state in {"key", "key or }"}:
            self._state, self.in_key = "string", True
            return character == '"'
        return self._begin(character)

    def _close_or_continue(self, character: str) -> bool:
        if character == "," and self._state == "after":
            self._state = "key" if self._open[-1] == "{" else "value"
            return True
        if character != _CLOSES[self._open[-1]]:
            return False
        self._open.pop()
        self._state = "after"
        self.done = not self._open
        return True

    def _begin(self, character: str) -> bool:
        if character in "{[":
            self._open.append(character)
            self._state = "key or }" if character == "{" else "value or ]"
            return len(self._open) <= MAX_DEPTH
        if character == '"':
            self._state, self.in_key = "string", False
        elif character == "-" or "0" <= character <= "9":
            self._state, self._word = "number", character
        elif character in _LITERALS:
            self._state, self._word = "literal", character
        else:
            return False
        return True
