"""OpenAI's ``/v1/chat/completions``."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitqwen.generation.results import TokenLogprob, TokenLogprobs
from bitqwen.generation.tool_calls import ArgumentsPiece, CallEnded, CallStarted, TextPiece, ToolCallEvent
from bitqwen.server.choices import Choice, collect
from bitqwen.server.errors import from_exception, invalid, openai_body
from bitqwen.server.generating import generation_request, note_usage
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.openai_responses import ChatCompletion, timings, usage_of
from bitqwen.server.openai_schemas import ChatRequest, JsonSchemaFormat, NamedTool
from bitqwen.server.operations import takes
from bitqwen.server.requests import Delta
from bitqwen.server.served_model import ServedModel
from bitqwen.server.service import model_of, service_of
from bitqwen.server.streams import EventStream, event, while_connected
from bitqwen.server.tools import AnswerForm, AnswerReader, answer_form, new_id, stop_reason

logger = logging.getLogger(__name__)


@takes(ChatRequest, "Answers a conversation.", returns=ChatCompletion, streams=True)
async def create(request: Request, body: ChatRequest) -> Response:
    """``POST /v1/chat/completions``."""
    service = service_of(request)
    served = await model_of(request, body.model)
    form, param = _form(body)
    prompt = await served.encode_chat(
        [_for_template(message.model_dump(exclude_none=True)) for message in body.messages],
        form.tools,
        continue_final_message=body.continue_final_message,
    )
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    handle = served.scheduler.submit(
        generation_request(
            request,
            served,
            prompt,
            sampling=body.sampling(served.language_model.sampling, logit_bias=body.biases()),
            max_tokens=limit,
            max_tokens_name="max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
            choices=body.n,
            stop=body.stops(),
            stop_token_ids=frozenset(body.stop_token_ids),
            ignore_eos=body.ignore_eos,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            constraint=await form.constraint(served, param),
            user=body.user,
        )
    )
    head = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": served.name,
    }
    if body.stream:
        chunks = _Chunks(head, form, body)
        return EventStream(
            chunks.events(request, served, handle),
            ping_seconds=service.settings.ping_seconds,
            on_close=handle.cancel,
        )
    choices = await while_connected(request, collect(handle, body.n))
    note_usage(request, served, handle.usage)
    return JSONResponse(
        {
            **head,
            "choices": [_choice(i, choice, form, body) for i, choice in enumerate(choices)],
            "usage": usage_of(handle.usage),
            "timings": timings(handle.usage),
        }
    )


def _form(body: ChatRequest) -> tuple[AnswerForm, str]:
    """What the answer may be, and the parameter that binds it."""
    guides = body.guides()
    if len(guides) > 1:
        first, second, *_ = guides
        raise invalid(f"{first} and {second} cannot be followed at once; give one.", second)
    param, grammar = next(iter(guides.items()), ("tools", None))
    schema = None
    if isinstance(body.response_format, JsonSchemaFormat):
        schema, grammar = body.response_format.json_schema.schema_, None
    choice = body.tool_choice
    named = choice.function.name if isinstance(choice, NamedTool) else None
    form = answer_form(
        [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        "required" if isinstance(choice, NamedTool) else choice or "auto",
        name=named,
        parallel=body.parallel_tool_calls,
        schema=schema,
        grammar=grammar,
    )
    return form, param


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _choice(index: int, choice: Choice, form: AnswerForm, body: ChatRequest) -> dict[str, Any]:
    reader = form.reader()
    reader.feed(Delta(index, choice.text, None, None, choice.finish_reason, choice.stopped_by))
    answer = reader.answer()
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": new_id("call"),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.calls
        ]
    elif message["content"] is None:
        message["content"] = ""
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs(choice.logprobs) if body.logprobs else None,
        "finish_reason": stop_reason(choice.finish_reason or "stop", bool(answer.calls)),
    }


def logprobs(entries: list[TokenLogprobs]) -> dict[str, Any]:
    """Log-probabilities as the chat interface spells them."""
    return {
        "content": [
            {**_logprob(entry), "top_logprobs": [_logprob(other) for other in entry.top]} for entry in entries
        ],
        "refusal": None,
    }


def _logprob(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.data)}


class _Chunks:
    """One streamed answer: the scheduler's deltas as OpenAI's chunks."""

    def __init__(self, head: dict[str, Any], form: AnswerForm, body: ChatRequest) -> None:
        self._head = {**head, "object": "chat.completion.chunk"}
        self._logprobs = body.logprobs
        self._usage = body.stream_options is not None and body.stream_options.include_usage
        self._readers: list[AnswerReader] = [form.reader() for _ in range(body.n)]
        self._pending: list[list[TokenLogprobs]] = [[] for _ in range(body.n)]

    async def events(
        self, request: Request, served: ServedModel, handle: GenerationHandle
    ) -> AsyncIterator[str]:
        """Server-sent events, to the last."""
        try:
            async with handle:
                for index in range(len(self._readers)):
                    yield self._chunk(index, {"role": "assistant", "content": ""})
                async for delta in handle:
                    for chunk in self._chunks(delta):
                        yield chunk
            if self._usage:
                facts = {"usage": usage_of(handle.usage), "timings": timings(handle.usage)}
                yield event({**self._head, "choices": [], **facts})
            yield event("[DONE]")
        except Exception as error:
            # The response has begun: an event is all that can tell.
            logger.warning(
                "a stream ended with an error: %s", error, exc_info=from_exception(error).status == 500
            )
            yield event(openai_body(from_exception(error)))
        finally:
            note_usage(request, served, handle.usage)

    def _chunks(self, delta: Delta) -> list[str]:
        reader = self._readers[delta.choice]
        pending = self._pending[delta.choice]
        if delta.logprobs is not None:
            pending.append(delta.logprobs)
        parts = [part for part in map(_delta, reader.feed(delta)) if part is not None]
        if not parts and pending and delta.finish_reason is not None:
            parts = [{}]  # tokens whose text was cut off all the same have log-probabilities
        chunks = []
        for part in parts:
            chunks.append(self._chunk(delta.choice, part, entries=pending))
            pending = []
        self._pending[delta.choice] = pending
        if delta.finish_reason is not None:
            reason = stop_reason(delta.finish_reason, reader.called)
            chunks.append(self._chunk(delta.choice, {}, finish_reason=reason))
        return chunks

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        entries: list[TokenLogprobs] | None = None,
        finish_reason: str | None = None,
    ) -> str:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs(entries) if self._logprobs and entries else None,
            "finish_reason": finish_reason,
        }
        usage = {"usage": None} if self._usage else {}
        return event({**self._head, "choices": [choice], **usage})


def _delta(piece: ToolCallEvent) -> dict[str, Any] | None:
    if isinstance(piece, TextPiece):
        return {"content": piece.text}
    if isinstance(piece, CallEnded):
        return None
    call: dict[str, Any] = {"index": piece.index}
    if isinstance(piece, CallStarted):
        call |= {"id": new_id("call"), "type": "function", "function": {"name": piece.name, "arguments": ""}}
    elif isinstance(piece, ArgumentsPiece):
        call["function"] = {"arguments": piece.text}
    return {"tool_calls": [call]}


def routes() -> list[Route]:
    """The routes of this module."""
    return [Route("/v1/chat/completions", create, methods=["POST"])]
