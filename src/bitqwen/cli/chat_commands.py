"""The /commands of ``bitqwen chat``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bitqwen.cli.conversation import SETTINGS, Conversation
from bitqwen.errors import UsageError

NAMES = {
    "/help": "show this list",
    "/clear": "forget the conversation; system prompt and settings stay",
    "/system": "/system TEXT sets the system prompt, /system alone shows it",
    "/save": "/save FILE writes the conversation as JSON",
    "/load": "/load FILE goes on with a saved conversation",
    "/set": "/set NAME VALUE changes a setting (default: the model's own), /set alone shows them",
    "/retry": "answer the last question again",
    "/stats": "show speed, context and memory",
    "/exit": "leave; so do /quit, /bye and Ctrl-D",
}
_ALIASES = {"/quit": "/exit", "/bye": "/exit", "/?": "/help"}
_INPUT_HELP = 'A line that ends in \\ goes on in the next; """ begins and ends a message of several lines.'


def parse(line: str) -> tuple[str, str]:
    """A command's name and what follows it.

    Raises:
        UsageError: there is no such command.
    """
    name, _, argument = line.strip().partition(" ")
    name = _ALIASES.get(name, name)
    if name not in NAMES:
        raise UsageError(
            f"There is no command {name}.",
            hint="/help lists them; begin a message with a space if it starts with a slash.",
        )
    return name, argument.strip()


class Commands:
    """Carries out the commands that change or show a conversation.

    Args:
        conversation: what they change.
        statistics: gives the text of /stats.
        say: prints a line.
    """

    def __init__(
        self, conversation: Conversation, *, statistics: Callable[[], str], say: Callable[[str], None]
    ) -> None:
        self._conversation = conversation
        self._statistics = statistics
        self._say = say

    def run(self, name: str, argument: str) -> None:
        """Carries out one command.

        Raises:
            UsageError: something is missing or not allowed behind its name.
            ModelFileError: a file of /save or /load.
        """
        if name == "/set":
            self._set(argument)
        elif name == "/system":
            self._system(argument)
        elif name in {"/save", "/load"}:
            self._file(name, argument)
        elif name == "/clear":
            self._conversation.clear()
            self._say("The conversation is empty.")
        elif name == "/stats":
            self._say(self._statistics())
        elif name == "/help":
            width = max(map(len, NAMES))
            self._say("\n".join(f"{command:{width}}  {text}" for command, text in NAMES.items()))
            self._say(_INPUT_HELP)

    def _set(self, argument: str) -> None:
        if argument:
            name, _, value = argument.partition(" ")
            if not value.strip():
                raise UsageError("/set takes a name and a value.", hint="Settings: " + ", ".join(SETTINGS))
            self._conversation.set(name, value.strip())
        settings = self._conversation.settings
        self._say("\n".join(f"{name} {settings.get(name, 'default')}" for name in SETTINGS))

    def _system(self, argument: str) -> None:
        if argument:
            self._conversation.system = argument
        system = self._conversation.system
        text = (
            "The system prompt is the chat template's own." if system is None else f"System prompt: {system}"
        )
        self._say(text)

    def _file(self, name: str, argument: str) -> None:
        if not argument:
            raise UsageError(f"{name} takes a file name.", hint=f"For example: {name} conversation.json")
        file = Path(argument).expanduser()
        if name == "/save":
            self._conversation.save(file)
            self._say(f"Saved {len(self._conversation.messages)} messages to {file}.")
        else:
            self._conversation.load(file)
            self._say(f"Loaded {len(self._conversation.messages)} messages from {file}.")
