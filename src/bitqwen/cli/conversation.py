"""A conversation's state: its messages, its settings, and the file it is saved in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitqwen.errors import ModelFileError, UsageError
from bitqwen.files import atomic_file
from bitqwen.generation.sampling import SamplingParams, check_integer

Message = dict[str, Any]

_ROLES = frozenset({"system", "user", "assistant"})
_MAX_FILE_BYTES = 64 << 20

# What /set takes: whether its value is a whole number.
SETTINGS = {
    "max_tokens": True,
    "temperature": False,
    "top_k": True,
    "top_p": False,
    "min_p": False,
    "repetition_penalty": False,
    "presence_penalty": False,
    "frequency_penalty": False,
    "seed": True,
}


class Conversation:
    """What was said, and how the next answer is to be sampled.

    Attributes:
        messages: of the library's :class:`~bitqwen.generation.chat.Chat`, changed in place.
        settings: keyword arguments of its ``stream``.
    """

    def __init__(self, messages: list[Message], settings: Mapping[str, Any]) -> None:
        self.messages = messages
        self.settings = dict(settings)

    @property
    def system(self) -> str | None:
        """The system prompt; None leaves it to the model's chat template."""
        first = self.messages[0] if self.messages else None
        return first["content"] if first and first["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        if self.system is not None:
            del self.messages[0]
        if text is not None:
            self.messages.insert(0, {"role": "system", "content": text})

    def clear(self) -> None:
        """Forgets all but the system prompt."""
        self.messages[:] = [message for message in self.messages if message["role"] == "system"]

    def take_back(self) -> str | None:
        """Removes the last question with its answer, and returns the question; None if there is none."""
        for i in reversed(range(len(self.messages))):
            if self.messages[i]["role"] == "user":
                question: str = self.messages[i]["content"]
                del self.messages[i:]
                return question
        return None

    def set(self, name: str, value: str) -> None:
        """Sets one setting; the value ``default`` goes back to the model's own.

        Raises:
            UsageError: an unknown name, or a value that is not allowed.
        """
        if name not in SETTINGS:
            raise UsageError(f"There is no setting {name!r}.", hint="Settings: " + ", ".join(SETTINGS))
        if value == "default":
            self.settings.pop(name, None)
            return
        whole = SETTINGS[name]
        try:
            number = int(value) if whole else float(value)
        except ValueError as error:
            raise UsageError(f"{name} is {'a whole' if whole else 'a'} number, not {value!r}.") from error
        if name == "max_tokens":
            check_integer(name, number, 1, (1 << 31) - 1)
        else:
            SamplingParams().with_overrides({name: number})  # refuses what is out of range
        self.settings[name] = number

    def save(self, file: Path) -> None:
        """Writes the conversation to a JSON file, whole or not at all.

        Raises:
            ModelFileError: the file cannot be written.
        """
        text = json.dumps(
            {"messages": self.messages, "settings": self.settings},
            ensure_ascii=False,
            indent=1,
        )
        try:
            with atomic_file(file) as partial:
                partial.write(text.encode() + b"\n")
        except OSError as error:
            raise ModelFileError(f"Cannot write {file}: {error.strerror}.") from error

    def load(self, file: Path) -> None:
        """Takes over the conversation of a file that :meth:`save` wrote.

        Raises:
            ModelFileError: the file cannot be read, or holds no conversation.
        """
        try:
            with file.open("rb") as stream:
                saved = json.loads(stream.read(_MAX_FILE_BYTES).decode("utf-8"))
        except OSError as error:
            raise ModelFileError(f"Cannot read {file}: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise ModelFileError(f"{file} is not JSON: {error}.") from error
        try:
            other = Conversation([_message(message) for message in saved["messages"]], {})
            for name, value in saved["settings"].items():
                if value is not None:
                    other.set(name, str(value))
        except (AttributeError, KeyError, TypeError, UsageError) as error:
            raise ModelFileError(
                f"{file} holds no conversation.", hint="Give a file that /save wrote."
            ) from error
        self.messages[:], self.settings = other.messages, other.settings


def _message(value: dict[str, object]) -> Message:
    role, content = value["role"], value["content"]
    if role not in _ROLES or not isinstance(content, str):
        raise TypeError(f"{value!r} is no message")
    return {"role": str(role), "content": content}
