"""Tools and forms of answers, as every interface needs them.

What the prompt lists, what the answer is bound to, and which parts of it are calls.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from bitqwen.errors import UsageError
from bitqwen.generation import grammars
from bitqwen.generation.grammars import Grammar
from bitqwen.generation.options import TokenConstraint
from bitqwen.generation.results import FinishReason
from bitqwen.generation.tool_calls import (
    CallStarted,
    ParsedAnswer,
    TextPiece,
    ToolCallEvent,
    ToolCallParser,
    collect,
    merge,
)
from bitqwen.server.errors import invalid
from bitqwen.server.requests import Delta
from bitqwen.server.served_model import ServedModel, in_thread

ToolMode = Literal["none", "auto", "required"]


@dataclass(frozen=True)
class AnswerForm:
    """What an answer may be.

    Attributes:
        tools: for the prompt, in OpenAI's form; ``None`` if the model may call none.
        grammar: what the answer is bound to, if anything.
    """

    tools: list[dict[str, Any]] | None = None
    grammar: Grammar | None = None

    def reader(self) -> AnswerReader:
        """What takes one answer apart."""
        return AnswerReader(calls=self.tools is not None)

    async def constraint(self, model: ServedModel, param: str) -> Callable[[], TokenConstraint] | None:
        """For a ``GenerationRequest``; compiled here once, so that a refusal is the request's answer.

        Args:
            model: that will answer.
            param: the request's field that the grammar comes from.

        Raises:
            ApiError: 400 with the reason for which the grammar is refused.
        """
        if self.grammar is None:
            return None
        try:
            await in_thread(model.language_model.constraint, self.grammar)
        except UsageError as error:
            raise invalid(str(error), param) from error
        return partial(model.language_model.constraint, self.grammar)


def answer_form(
    tools: Sequence[Mapping[str, Any]],
    mode: ToolMode = "auto",
    *,
    name: str | None = None,
    parallel: bool = True,
    schema: Mapping[str, Any] | None = None,
    grammar: Grammar | None = None,
) -> AnswerForm:
    """What a request's tools, tool choice and wanted format come to.

    Tools are left out of the prompt when the model may not call any. A required call is enforced; otherwise
    the answer is bound only as far as the request asks: a tool's ``strict``, a single call, a schema.

    Args:
        tools: in OpenAI's form.
        mode: whether the model may or must call one.
        name: with "required", the only one it may call.
        parallel: whether it may call several.
        schema: the form of an answer that is no call.
        grammar: the same as a grammar; only without tools.

    Raises:
        UsageError: no tool of that name, or something that is no tool or no schema.
    """
    if not tools and mode == "required":
        raise UsageError("tool_choice requires a call, but there are no tools.")
    if mode == "none" or not tools:
        return AnswerForm(None, grammars.json_schema(schema) if schema is not None else grammar)
    if grammar is not None:
        raise UsageError("An answer may call tools or follow a grammar, not both.")
    listed = [_listed(tool) for tool in tools]
    if mode == "required":
        return AnswerForm(listed, grammars.tool_calls(tools, name=name, parallel=parallel))
    strict = any(tool["function"].get("strict") for tool in tools)
    if strict or not parallel or schema is not None:
        bound = grammars.tool_calls(tools, mode="auto", parallel=parallel, text_schema=schema)
        return AnswerForm(listed, bound)
    return AnswerForm(listed)


def _listed(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as the model was trained to read it: without what only the server acts on."""
    function = {
        key: value for key, value in tool["function"].items() if key != "strict" and value is not None
    }
    return {"type": "function", "function": function}


class AnswerReader:
    """Takes one choice's deltas apart into text and calls.

    Attributes:
        called: whether a call has started.

    Args:
        calls: whether the answer may hold calls; otherwise all of it is text.
    """

    def __init__(self, *, calls: bool) -> None:
        self.called = False
        self._parser = ToolCallParser() if calls else None
        self._events: list[ToolCallEvent] = []

    def feed(self, delta: Delta) -> list[ToolCallEvent]:
        """What a delta adds; with a choice's last one, also what was held back."""
        if self._parser is None:
            events: list[ToolCallEvent] = [TextPiece(delta.text)] if delta.text else []
        else:
            events = self._parser.feed(delta.text)
            if delta.finish_reason is not None:
                events = merge([*events, *self._parser.finish()])
        self.called = self.called or any(isinstance(event, CallStarted) for event in events)
        self._events += events
        return events

    def answer(self) -> ParsedAnswer:
        """The whole answer so far; calls that are not valid are text."""
        return collect(self._events)


def stop_reason(finish_reason: FinishReason, called: bool) -> Literal["stop", "length", "tool_calls"]:
    """Why an answer ended, for interfaces that count a call as a reason."""
    return "tool_calls" if called and finish_reason == "stop" else finish_reason


def new_id(prefix: str) -> str:
    """An id that no other object has, such as ``call_1f0c...``."""
    return f"{prefix}_{secrets.token_hex(12)}"
