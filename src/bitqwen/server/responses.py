"""OpenAI's Responses interface, ``/v1/responses``: streamed or whole; nothing is stored."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitqwen.generation.tool_calls import ArgumentsPiece, CallEnded, CallStarted, TextPiece, ToolCallEvent
from bitqwen.server.errors import from_exception
from bitqwen.server.generating import generation_request, note_usage, noting_usage
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.operations import takes
from bitqwen.server.requests import Delta, Usage
from bitqwen.server.responses_schemas import ResponsesBody
from bitqwen.server.service import model_of, service_of
from bitqwen.server.streams import EventStream, event, while_connected
from bitqwen.server.tools import AnswerReader, new_id

logger = logging.getLogger(__name__)


class ResponseObject(BaseModel):
    """A response; the settings that it was made with come back in it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None


@takes(ResponsesBody, "Answers a conversation.", returns=ResponseObject, streams=True)
async def responses(request: Request, body: ResponsesBody) -> Response:
    """``POST /v1/responses``."""
    model = await model_of(request, body.model)
    form = body.form()
    constraint = await form.constraint(model, "text.format" if form.tools is None else "tools")
    sampling = body.sampling(model.language_model.sampling)
    handle = model.scheduler.submit(
        generation_request(
            request,
            model,
            await model.encode_chat(body.conversation(), form.tools),
            sampling=sampling,
            max_tokens=body.max_output_tokens,
            max_tokens_name="max_output_tokens",
            constraint=constraint,
        )
    )
    base = {"model": model.name, **body.echoed(sampling)}
    if body.stream:
        events = noting_usage(request, model, handle, _ResponseEvents(base, handle, form.reader()).run())
        return EventStream(
            events, ping_seconds=service_of(request).settings.ping_seconds, on_close=handle.cancel
        )
    whole = await while_connected(request, _whole(base, handle, form.reader()))
    note_usage(request, model, handle.usage)
    return JSONResponse(whole)


async def _whole(base: dict[str, Any], handle: GenerationHandle, reader: AnswerReader) -> dict[str, Any]:
    last: Delta | None = None
    async with handle:
        async for delta in handle:
            reader.feed(delta)
            last = delta
    answer = reader.answer()
    cut = last is not None and last.finish_reason == "length"
    status = "incomplete" if cut else "completed"
    output = []
    if answer.text:
        output.append(_message(new_id("msg"), status, answer.text))
    output += [
        _call(new_id("fc"), new_id("call"), call.name, call.arguments, "completed") for call in answer.calls
    ]
    return _response(base, status, output, handle.usage)


def _response(
    base: dict[str, Any], status: str, output: list[dict[str, Any]], usage: Usage | None
) -> dict[str, Any]:
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": output,
        "usage": None if usage is None else _usage(usage),
        **base,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message(item_id: str, status: str, text: str | None) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [] if text is None else [_text_part(text)],
    }


def _call(item_id: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    return {
        "id": item_id,
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


class _ResponseEvents:
    """One streamed response: items of text and of calls, each added, told in pieces, and done."""

    def __init__(self, base: dict[str, Any], handle: GenerationHandle, reader: AnswerReader) -> None:
        now = _response(base, "in_progress", [], None)
        self._base = {**base, "id": now["id"], "created_at": now["created_at"]}
        self._handle = handle
        self._reader = reader
        self._sequence = -1  # number of the latest event
        self._output: list[dict[str, Any]] = []  # items, the last one as it was added
        self._pieces: list[str] | None = None  # of the item that is open

    async def run(self) -> AsyncGenerator[str, None]:
        """The events; an error on the way is the last of them."""
        try:
            async with self._handle:
                for kind in ("created", "in_progress"):
                    yield self._event(f"response.{kind}", response=self._now("in_progress"))
                last: Delta | None = None
                async for delta in self._handle:
                    last = delta
                    for part in self._reader.feed(delta):
                        for line in self._part(part):
                            yield line
                status = "incomplete" if last is not None and last.finish_reason == "length" else "completed"
                for line in self._close(status):
                    yield line
                yield self._event(f"response.{status}", response=self._now(status))
        except Exception as error:
            answer = from_exception(error)
            if answer.status == 500:
                logger.exception("a streamed answer failed")
            failed = self._now("failed")
            failed["error"] = {"code": "server_error", "message": answer.message}
            yield self._event("response.failed", response=failed)

    def _now(self, status: str) -> dict[str, Any]:
        usage = None if status == "in_progress" else self._handle.usage
        return _response(self._base, status, list(self._output), usage)

    def _event(self, kind: str, **fields: Any) -> str:
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence, **fields}, name=kind)

    def _part(self, part: ToolCallEvent) -> Iterator[str]:
        if isinstance(part, TextPiece):
            if self._pieces is None:
                yield self._open(_message(new_id("msg"), "in_progress", None))
                yield self._item_event("response.content_part.added", content_index=0, part=_text_part(""))
            yield self._piece("response.output_text.delta", part.text, content_index=0, logprobs=[])
        elif isinstance(part, CallStarted):
            yield from self._close("completed")
            yield self._open(_call(new_id("fc"), new_id("call"), part.name, "", "in_progress"))
        elif isinstance(part, ArgumentsPiece):
            yield self._piece("response.function_call_arguments.delta", part.text)
        elif isinstance(part, CallEnded):
            yield from self._close("completed" if part.valid else "incomplete")

    def _open(self, item: dict[str, Any]) -> str:
        self._output.append(item)
        self._pieces = []
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _piece(self, kind: str, text: str, **fields: Any) -> str:
        assert self._pieces is not None
        self._pieces.append(text)
        return self._item_event(kind, delta=text, **fields)

    def _item_event(self, kind: str, **fields: Any) -> str:
        index = len(self._output) - 1
        return self._event(kind, item_id=self._output[index]["id"], output_index=index, **fields)

    def _close(self, status: str) -> Iterator[str]:
        if self._pieces is None:
            return
        text = "".join(self._pieces)
        self._pieces = None
        item = self._output[-1]
        if item["type"] == "message":
            item = _message(item["id"], status, text)
            yield self._item_event("response.output_text.done", content_index=0, text=text, logprobs=[])
            yield self._item_event("response.content_part.done", content_index=0, part=_text_part(text))
        else:
            item = {**item, "arguments": text, "status": status}
            yield self._item_event("response.function_call_arguments.done", name=item["name"], arguments=text)
        self._output[-1] = item
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)


def routes() -> list[Route]:
    """The routes of this module."""
    return [Route("/v1/responses", responses, methods=["POST"])]
