"""OpenAI's ``/v1/completions``: a prompt goes on as it stands, or a gap in a text is filled."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitqwen.generation.answer import token_logprobs
from bitqwen.generation.results import TokenLogprobs
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.server.choices import Choice, interleave, total
from bitqwen.server.errors import from_exception, invalid, openai_body
from bitqwen.server.generating import generation_request, note_usage
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.openai_responses import TextCompletion, timings, usage_of
from bitqwen.server.openai_schemas import CompletionRequest, one_or_several
from bitqwen.server.operations import takes
from bitqwen.server.requests import GenerationRequest, Usage
from bitqwen.server.served_model import ServedModel, in_thread
from bitqwen.server.service import model_of, service_of
from bitqwen.server.streams import EventStream, event, while_connected
from bitqwen.server.tools import AnswerForm, new_id

logger = logging.getLogger(__name__)

_FILL_IN_MIDDLE = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
# Coder models end a filled gap with any of these.
_FILE_ENDS = ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", *_FILL_IN_MIDDLE)


@takes(CompletionRequest, "Goes on with a text.", returns=TextCompletion, streams=True)
async def create(request: Request, body: CompletionRequest) -> Response:
    """``POST /v1/completions``."""
    service = service_of(request)
    served = await model_of(request, body.model)
    _check(body)
    tokenizer = served.language_model.tokenizer
    prompts = await in_thread(_prompts, body, served)
    constraint = await _constraint(body, served)
    stop_ids = frozenset(body.stop_token_ids)
    if body.suffix is not None:
        stop_ids |= {tokenizer.control[name] for name in _FILE_ENDS if name in tokenizer.control}
    echoes = [await _echo(body, served, prompt) for prompt in prompts]
    wanted = [
        generation_request(
            request,
            served,
            prompt,
            sampling=body.sampling(served.language_model.sampling, logit_bias=body.biases()),
            max_tokens=body.max_tokens,
            choices=body.n,
            stop=body.stops(),
            stop_token_ids=stop_ids,
            ignore_eos=body.ignore_eos,
            logprobs=body.logprobs,
            constraint=constraint,
            user=body.user,
        )
        for prompt in prompts
    ]
    completion = _Completion(request, served, body, echoes)
    if body.max_tokens == 0:
        return JSONResponse(completion.echoed(prompts))
    handles = _submit_all(served, wanted)
    if body.stream:
        return EventStream(
            completion.events(handles),
            ping_seconds=service.settings.ping_seconds,
            on_close=partial(_cancel_all, handles),
        )
    return JSONResponse(await while_connected(request, completion.whole(handles)))


def _check(body: CompletionRequest) -> None:
    if body.suffix is not None and not isinstance(body.prompt, str):
        raise invalid("suffix is allowed with a prompt that is one text.", "suffix")
    if body.suffix is not None and body.echo:
        raise invalid("echo is not allowed with suffix.", "echo")
    if body.max_tokens == 0 and (not body.echo or body.stream):
        raise invalid("max_tokens is 0, which is allowed with echo and without stream only.", "max_tokens")


def _prompts(body: CompletionRequest, served: ServedModel) -> list[list[int]]:
    """Token ids of all prompts."""
    if body.suffix is not None:
        return [_gap(served.language_model.tokenizer, str(body.prompt), body.suffix)]
    return [served.language_model.encode_prompt(one) for one in one_or_several(body.prompt)]


def _gap(tokenizer: Tokenizer, before: str, after: str) -> list[int]:
    """Ids that ask a Coder model for what stands between two texts."""
    missing = [name for name in _FILL_IN_MIDDLE if name not in tokenizer.control]
    if missing:
        raise invalid(f"suffix needs a model with the token {missing[0]}; this one has none.", "suffix")
    prefix, suffix, middle = (tokenizer.control[name] for name in _FILL_IN_MIDDLE)
    return [prefix, *tokenizer.encode(before), suffix, *tokenizer.encode(after), middle]


async def _constraint(body: CompletionRequest, served: ServedModel) -> Any:
    guides = body.guides()
    if len(guides) > 1:
        first, second, *_ = guides
        raise invalid(f"{first} and {second} cannot be followed at once; give one.", second)
    param, grammar = next(iter(guides.items()), ("", None))
    return await AnswerForm(None, grammar).constraint(served, param)


def _submit_all(served: ServedModel, wanted: Sequence[GenerationRequest]) -> list[GenerationHandle]:
    """Submits all or none."""
    handles: list[GenerationHandle] = []
    try:
        for one in wanted:
            handles.append(served.scheduler.submit(one))  # noqa: PERF401 - some may be in it when one is refused
    except BaseException:
        _cancel_all(handles)
        raise
    return handles


def _cancel_all(handles: Sequence[GenerationHandle]) -> None:
    for handle in handles:
        handle.cancel()


@dataclass(frozen=True)
class _Echo:
    """What stands before each of a prompt's texts: nothing, unless asked for.

    Attributes:
        text: the prompt.
        tokens: its tokens' texts and log-probabilities, the first token without one.
    """

    text: str = ""
    tokens: tuple[tuple[str, TokenLogprobs | None], ...] = ()


async def _echo(body: CompletionRequest, served: ServedModel, prompt: list[int]) -> _Echo:
    if not body.echo:
        return _Echo()
    tokenizer = served.language_model.tokenizer
    text = tokenizer.decode(prompt)
    if body.logprobs is None:
        return _Echo(text)
    top = body.logprobs
    entries: list[TokenLogprobs | None] = [None] * len(prompt)

    def take(start: int, rows: Any) -> None:
        for position, row in enumerate(rows, start + 1):
            if position < len(prompt):
                entries[position] = token_logprobs(tokenizer, row, prompt[position], top)

    await served.scheduler.read(prompt, take, hidden=False)
    spelt = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in prompt]
    return _Echo(text, tuple(zip(spelt, entries, strict=True)))


class _Completion:
    """One response: its texts as they come, or whole."""

    def __init__(
        self, request: Request, served: ServedModel, body: CompletionRequest, echoes: Sequence[_Echo]
    ) -> None:
        self._request = request
        self._served = served
        self._body = body
        self._echoes = echoes
        self._head = {
            "id": new_id("cmpl"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }

    def echoed(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The response when nothing is to be generated."""
        usage = Usage(sum(map(len, prompts)))
        made = [Choice(finish_reason="length") for _ in range(len(prompts) * self._body.n)]
        return self._response(made, usage)

    async def whole(self, handles: Sequence[GenerationHandle]) -> dict[str, Any]:
        """The response when all is generated."""
        made = [Choice() for _ in range(len(handles) * self._body.n)]
        async with AsyncExitStack() as stack:
            for handle in handles:
                await stack.enter_async_context(handle)
            async for prompt, delta in interleave(handles):
                made[prompt * self._body.n + delta.choice].add(delta)
        return self._response(made, self._total(handles))

    def _total(self, handles: Sequence[GenerationHandle]) -> Usage:
        usage = total([handle.usage for handle in handles])
        note_usage(self._request, self._served, usage)
        return usage

    def _response(self, made: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        choices = []
        for index, choice in enumerate(made):
            echo = self._echoes[index // self._body.n]
            choices.append(
                {
                    "index": index,
                    "text": echo.text + choice.text,
                    "logprobs": self._logprobs(echo, choice.logprobs, 0),
                    "finish_reason": choice.finish_reason,
                }
            )
        return {**self._head, "choices": choices, "usage": usage_of(usage), "timings": timings(usage)}

    async def events(self, handles: Sequence[GenerationHandle]) -> AsyncIterator[str]:
        """Server-sent events, to the last."""
        n = self._body.n
        options = self._body.stream_options
        with_usage = {"usage": None} if options is not None and options.include_usage else {}
        begun: set[int] = set()
        offsets = [0] * (len(handles) * n)
        try:
            async with AsyncExitStack() as stack:
                for handle in handles:
                    await stack.enter_async_context(handle)
                async for prompt, delta in interleave(handles):
                    index = prompt * n + delta.choice
                    echo = _Echo() if index in begun else self._echoes[prompt]
                    begun.add(index)
                    entries = [] if delta.logprobs is None else [delta.logprobs]
                    text = echo.text + delta.text
                    if not text and not entries and delta.finish_reason is None:
                        continue
                    choice = {
                        "index": index,
                        "text": text,
                        "logprobs": self._logprobs(echo, entries, offsets[index]),
                        "finish_reason": delta.finish_reason,
                    }
                    offsets[index] += len(text)
                    yield event({**self._head, "choices": [choice], **with_usage})
            if with_usage:
                usage = total([handle.usage for handle in handles])
                facts = {"usage": usage_of(usage), "timings": timings(usage)}
                yield event({**self._head, "choices": [], **facts})
            yield event("[DONE]")
        except Exception as error:
            # The response has begun: an event is all that can tell.
            unexpected = from_exception(error).status == 500
            logger.warning("a stream ended with an error: %s", error, exc_info=unexpected)
            yield event(openai_body(from_exception(error)))
        finally:
            self._total(handles)

    def _logprobs(self, echo: _Echo, entries: Sequence[TokenLogprobs], offset: int) -> dict[str, Any] | None:
        """Log-probabilities as the completion interface spells them.

        Args:
            echo: what stands before them.
            entries: of generated tokens.
            offset: characters of the text before the first of them all.
        """
        if self._body.logprobs is None:
            return None
        tokens = [*echo.tokens, *((entry.text, entry) for entry in entries)]
        offsets = []
        for text, _ in tokens:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": [text for text, _ in tokens],
            "token_logprobs": [None if entry is None else entry.logprob for _, entry in tokens],
            "top_logprobs": [
                None if entry is None else {other.text: other.logprob for other in (*entry.top, entry)}
                for _, entry in tokens
            ],
            "text_offset": offsets,
        }


def routes() -> list[Route]:
    """The routes of this module."""
    return [Route("/v1/completions", create, methods=["POST"])]
