"""From messages to the prompt: the model's chat template, and token ids that user text cannot forge.

A template puts control tokens around what users write. If a user's text holds a control token's name
(``<|im_end|>``), the rendered string alone no longer tells who wrote it. :meth:`ChatTemplate.encode`
therefore breaks each such name in the messages with a random marker before rendering; afterwards only
names that the template wrote are whole and become control tokens. The markers are then removed, and
each stretch between control tokens is encoded as one text, so that the ids are those of plain text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitqwen.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    import jinja2

    from bitqwen.generation.tokenizer import Tokenizer

Message = Mapping[str, Any]

_BUNDLED = Path(__file__).with_name("templates") / "qwen2.5.jinja"


class ChatTemplate:
    """A chat template in Hugging Face's dialect of jinja2.

    Args:
        source: the model's template; ``None`` for the bundled one of Qwen2.5.
        special_tokens: variables such as ``bos_token`` and ``eos_token`` that templates may write.
    """

    def __init__(self, source: str | None = None, *, special_tokens: Mapping[str, str] | None = None) -> None:
        self.source = _BUNDLED.read_text(encoding="utf-8") if source is None else source
        self.special_tokens = dict(special_tokens or {})

    @cached_property
    def _template(self) -> jinja2.Template:
        import jinja2

        from bitqwen.generation.template_sandbox import compile_template

        try:
            return compile_template(self.source)
        except (jinja2.TemplateError, RecursionError) as error:
            line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ModelFileError(
                f"The model's chat template does not compile: {error}{line}.",
                hint="Give another one with chat_template=...",
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt as text, as transformers' ``apply_chat_template`` writes it.

        Args:
            messages: each with "role" and "content" (text, or OpenAI's list of text parts); an assistant's
                may have "tool_calls", whose arguments may be an object or its JSON.
            tools: functions that the model may call, as JSON schemas in OpenAI's form.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: leave the last message open, for the model to go on with it.
            **variables: further variables that the template reads.

        Raises:
            UsageError: no messages, malformed ones, or ones that the template refuses.
            ModelFileError: the template does not compile, or does not end within its bounds.
        """
        return self._render(
            messages, tools, add_generation_prompt, continue_final_message, variables, guard=None
        )

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        continue_final_message: bool = False,
        allow_special: bool = False,
        **variables: Any,
    ) -> list[int]:
        """The prompt as token ids, with control tokens only where the template wrote them.

        Args:
            tokenizer: the model's.
            messages: as for :meth:`render`.
            tools: as for :meth:`render`.
            add_generation_prompt: as for :meth:`render`.
            continue_final_message: as for :meth:`render`.
            allow_special: let control tokens' names in the messages be control tokens.
            **variables: as for :meth:`render`.

        Raises:
            UsageError, ModelFileError: as :meth:`render`.
        """
        guard = None if allow_special else ControlGuard(tokenizer.control)
        prompt = self._render(
            messages, tools, add_generation_prompt, continue_final_message, variables, guard=guard
        )
        if guard is None or not guard.used:
            return tokenizer.encode(prompt, allow_special=True)
        return guard.encode(tokenizer, prompt)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
        *,
        guard: ControlGuard | None,
    ) -> str:
        text = guard.protect if guard else str
        chat = _plain_messages(messages, text)
        given = {
            **self.special_tokens,
            "documents": None,
            **{name: _plain(value, text, name) for name, value in variables.items()},
            "messages": chat,
            "tools": None if tools is None else _plain(list(tools), text, "tools"),
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        if not continue_final_message:
            return self._run(given)
        # The space after the mark shows whether the template trims what it is given.
        mark = secrets.token_hex(8)
        last = chat[-1]
        if not isinstance(last.get("content"), str):
            raise UsageError("The last message has no text to go on with.")
        last["content"] += mark + " "
        prompt = self._run(given)
        place = prompt.rfind(mark)
        if place < 0:
            raise UsageError(
                "The model's chat template does not write the last message, so nothing can go on with it."
            )
        kept = prompt[:place]
        return kept if prompt[place + len(mark) :].startswith(" ") else kept.rstrip()

    def _run(self, variables: dict[str, Any]) -> str:
        template = self._template
        import jinja2

        from bitqwen.generation.template_sandbox import render

        try:
            return render(template, variables)
        except (jinja2.exceptions.SecurityError, RecursionError) as error:
            raise ModelFileError(
                f"The model's chat template was stopped: {error}.",
                hint="Give another one with chat_template=...",
            ) from error
        except Exception as error:  # a template may fail in any way that Python can
            raise UsageError(
                f"The model's chat template refuses these messages: {error}",
                hint="Each message needs a role that the template knows and the content that it expects.",
            ) from error


class ControlGuard:
    """Keeps control tokens' names in user text from becoming control tokens.

    Attributes:
        used: whether any text needed a marker.
    """

    def __init__(self, control: Iterable[str]) -> None:
        names = sorted(control, key=len, reverse=True)
        # Letters and digits pass through every filter of a template; nobody can guess these.
        self._marker = secrets.token_hex(12)
        self._names = re.compile("|".join(map(re.escape, names)) or "(?!)")
        # A text may also end in the beginning of a name that the next one completes.
        self._beginnings = tuple({name[:end] for name in names for end in range(1, len(name))})
        self.used = False

    def protect(self, text: str) -> str:
        """``text`` with every control token's name broken."""
        guarded = self._names.sub(lambda match: match[0][0] + self._marker + match[0][1:], text)
        if guarded.endswith(self._beginnings):
            guarded += self._marker
        self.used = self.used or guarded != text
        return guarded

    def encode(self, tokenizer: Tokenizer, prompt: str) -> list[int]:
        """Ids of a rendered prompt, with the markers taken out again."""
        ids: list[int] = []
        start = 0
        for match in self._names.finditer(prompt):
            ids += tokenizer.encode(prompt[start : match.start()].replace(self._marker, ""))
            ids.append(tokenizer.control[match[0]])
            start = match.end()
        return ids + tokenizer.encode(prompt[start:].replace(self._marker, ""))


def _plain_messages(messages: Sequence[Message], text: Callable[[str], str]) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise UsageError(f"The messages are a {type(messages).__name__}; allowed: a list of messages.")
    if not messages:
        raise UsageError(
            "There are no messages.", hint='Give at least one, such as {"role": "user", "content": "Hi"}.'
        )
    return [_plain_message(message, i, text) for i, message in enumerate(messages)]


def _plain_message(message: Message, place: int, text: Callable[[str], str]) -> dict[str, Any]:
    where = f"message {place + 1}"
    if not isinstance(message, Mapping):
        raise UsageError(
            f"The {where} is a {type(message).__name__}; allowed: a mapping with role and content."
        )
    if not isinstance(message.get("role"), str):
        raise UsageError(f"The {where} has no role; usual ones: system, user, assistant, tool.")
    plain: dict[str, Any] = {}
    for key, value in message.items():
        if value is None:  # the same as absent, as in OpenAI's API
            continue
        if key == "content":
            plain[key] = text(_content(value, where))
        elif key == "tool_calls":
            if not isinstance(value, list | tuple):
                raise UsageError(
                    f"The {where}'s tool_calls are a {type(value).__name__}; allowed: a list of calls."
                )
            plain[key] = _plain([_with_object_arguments(call) for call in value], text, where)
        else:
            plain[key] = _plain(value, text, where)
    if "content" not in plain and not plain.get("tool_calls"):
        raise UsageError(f"The {where} has no content.")
    return plain


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise UsageError(
            f"The {where}'s content is a {type(content).__name__}; allowed: text, or a list of text parts."
        )
    parts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or kind != "text" or not isinstance(part.get("text"), str):
            raise UsageError(f"The {where} has a part of type {kind!r}; this model reads only 'text'.")
        parts.append(part["text"])
    return "\n".join(parts)


def _with_object_arguments(call: Any) -> Any:
    """OpenAI's clients give a call's arguments as JSON text; templates want the object."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_object_arguments(call["function"])}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except ValueError:
            return call
        if isinstance(value, dict):
            return {**call, "arguments": value}
    return call


def _plain(value: Any, text: Callable[[str], str], where: str) -> Any:
    """``value`` in JSON's types only: other objects have methods that no sandbox knows to be dangerous."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(str.__str__(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {text(str(key)): _plain(item, text, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, text, where) for item in value]
    raise UsageError(f"The {where} holds a {type(value).__name__}; allowed: what JSON can express.")
