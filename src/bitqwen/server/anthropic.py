"""Anthropic's interface: ``/v1/messages``, streamed or whole, and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from typing import Any, Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitqwen.generation.tool_calls import (
    ArgumentsPiece,
    CallEnded,
    CallStarted,
    ParsedAnswer,
    TextPiece,
    ToolCallEvent,
)
from bitqwen.server.anthropic_messages import MessagesBody, Prompt
from bitqwen.server.errors import ApiError, from_exception
from bitqwen.server.generating import generation_request, note_usage, noting_usage
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.operations import takes
from bitqwen.server.requests import Delta, Usage
from bitqwen.server.served_model import ServedModel
from bitqwen.server.service import model_of, service_of
from bitqwen.server.streams import EventStream, event, while_connected
from bitqwen.server.tools import AnswerForm, AnswerReader, new_id, stop_reason

logger = logging.getLogger(__name__)


class MessageUsage(BaseModel):
    """Counts of a message; ``input_tokens`` are those of the prompt that were not cached."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageObject(BaseModel):
    """A whole answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    """The length of a prompt."""

    input_tokens: int


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as Anthropic's API spells it."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
    kind = kinds.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


@takes(MessagesBody, "Answers a conversation.", returns=MessageObject, streams=True)
async def messages(request: Request, body: MessagesBody) -> Response:
    """``POST /v1/messages``."""
    model = await model_of(request, body.model)
    form = body.form()
    prompt, constraint = await _encode(model, body, form), await form.constraint(model, "tools")
    handle = model.scheduler.submit(
        generation_request(
            request,
            model,
            prompt,
            sampling=body.sampling(model.language_model.sampling),
            max_tokens=body.max_tokens,
            stop=body.stop_sequences,
            constraint=constraint,
        )
    )
    if body.stream:
        events = noting_usage(request, model, handle, _MessageEvents(model.name, handle, form.reader()).run())
        return EventStream(
            events,
            ping=event({"type": "ping"}, name="ping"),
            ping_seconds=service_of(request).settings.ping_seconds,
            on_close=handle.cancel,
        )
    whole = await while_connected(request, _whole(model.name, handle, form.reader()))
    note_usage(request, model, handle.usage)
    return JSONResponse(whole)


@takes(Prompt, "Counts the tokens of a conversation.", returns=TokenCount)
async def count_tokens(request: Request, body: Prompt) -> JSONResponse:
    """``POST /v1/messages/count_tokens``."""
    model = await model_of(request, body.model)
    return JSONResponse({"input_tokens": len(await _encode(model, body, body.form()))})


async def _encode(model: ServedModel, body: Prompt, form: AnswerForm) -> list[int]:
    return await model.encode_chat(body.conversation(), form.tools, continue_final_message=body.prefilled)


async def _whole(model: str, handle: GenerationHandle, reader: AnswerReader) -> dict[str, Any]:
    last: Delta | None = None
    async with handle:
        async for delta in handle:
            reader.feed(delta)
            last = delta
    answer = reader.answer()
    return {
        **_message(model, handle.usage),
        "content": _content(answer),
        **_stop(last, called=bool(answer.calls)),
    }


def _message(model: str, usage: Usage) -> dict[str, Any]:
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(usage),
    }


def _content(answer: ParsedAnswer) -> list[dict[str, Any]]:
    texts = [{"type": "text", "text": answer.text}] if answer.text else []
    return [
        *texts,
        *(_tool_use(call.name, json.loads(call.arguments)) for call in answer.calls),
    ]


def _tool_use(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": new_id("toolu"), "name": name, "input": arguments}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _stop(last: Delta | None, *, called: bool) -> dict[str, Any]:
    if last is None or last.finish_reason is None:
        return {"stop_reason": None, "stop_sequence": None}
    if isinstance(last.stopped_by, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stopped_by}
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    return {"stop_reason": reasons[stop_reason(last.finish_reason, called)], "stop_sequence": None}


class _MessageEvents:
    """One streamed message: blocks of text and of calls, each with a start, its pieces and an end."""

    def __init__(self, model: str, handle: GenerationHandle, reader: AnswerReader) -> None:
        self._model = model
        self._handle = handle
        self._reader = reader
        self._index = -1  # of the latest block
        self._open: Literal["text", "tool_use"] | None = None

    async def run(self) -> AsyncGenerator[str, None]:
        """The events; an error on the way is the last of them."""
        try:
            async with self._handle:
                last: Delta | None = None
                async for delta in self._handle:
                    if last is None:  # only now is it known how much of the prompt was cached
                        yield _event("message_start", message=_message(self._model, self._handle.usage))
                    last = delta
                    for part in self._reader.feed(delta):
                        for line in self._part(part):
                            yield line
                for line in self._close():
                    yield line
                stop = _stop(last, called=self._reader.called)
                yield _event("message_delta", delta=stop, usage=_usage(self._handle.usage))
                yield _event("message_stop")
        except Exception as error:
            answer = from_exception(error)
            if answer.status == 500:
                logger.exception("a streamed answer failed")
            yield event(error_body(answer), name="error")

    def _part(self, part: ToolCallEvent) -> list[str]:
        if isinstance(part, TextPiece):
            start = [] if self._open == "text" else self._start("text", {"type": "text", "text": ""})
            return [*start, self._delta({"type": "text_delta", "text": part.text})]
        if isinstance(part, CallStarted):
            return self._start("tool_use", _tool_use(part.name, {}))
        if isinstance(part, ArgumentsPiece):
            return [self._delta({"type": "input_json_delta", "partial_json": part.text})]
        assert isinstance(part, CallEnded)
        return self._close()

    def _start(self, kind: Literal["text", "tool_use"], block: dict[str, Any]) -> list[str]:
        ended = self._close()
        self._index += 1
        self._open = kind
        return [*ended, _event("content_block_start", index=self._index, content_block=block)]

    def _delta(self, delta: dict[str, Any]) -> str:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> list[str]:
        if self._open is None:
            return []
        self._open = None
        return [_event("content_block_stop", index=self._index)]


def _event(kind: str, **fields: Any) -> str:
    return event({"type": kind, **fields}, name=kind)


def routes() -> list[Route]:
    """The routes of this module."""
    return [
        Route("/v1/messages", messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
    ]
