"""From the fields that the interfaces share to a request for the scheduler."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from bitqwen.server.errors import invalid
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.requests import GenerationRequest, Usage
from bitqwen.server.served_model import ServedModel
from bitqwen.server.service import service_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from bitqwen.generation.options import TokenConstraint
    from bitqwen.generation.sampling import SamplingParams


def generation_request(
    request: Request,
    served: ServedModel,
    prompt: Sequence[int],
    *,
    sampling: SamplingParams,
    max_tokens: int | None,
    choices: int = 1,
    constraint: Callable[[], TokenConstraint] | None = None,
    user: str | None = None,
    max_tokens_name: str = "max_tokens",
    **more: Any,
) -> GenerationRequest:
    """A request within the server's limits.

    Args:
        request: for its client.
        served: the model.
        prompt: token ids.
        sampling: settings.
        max_tokens: ``None`` goes on to the server's limit, or the context's.
        choices: answers to make.
        constraint: see :meth:`bitqwen.server.tools.AnswerForm.constraint`.
        user: whom the client names.
        max_tokens_name: what the interface calls ``max_tokens``, for the error.
        **more: further fields of :class:`GenerationRequest`.

    Raises:
        ApiError: 400, a limit of the server is exceeded.
    """
    settings = service_of(request).settings
    if choices > min(settings.max_choices, settings.max_batch):
        allowed = min(settings.max_choices, settings.max_batch)
        raise invalid(f"n is {choices}; this server allows 1 to {allowed}.", "n")
    if settings.max_tokens is not None and max_tokens is not None and max_tokens > settings.max_tokens:
        raise invalid(
            f"{max_tokens_name} is {max_tokens}; this server allows up to {settings.max_tokens}.",
            max_tokens_name,
        )
    return GenerationRequest(
        prompt=prompt,
        sampling=sampling,
        max_tokens=settings.max_tokens if max_tokens is None else max_tokens,
        choices=choices,
        constraint=constraint,
        client=client_of(request, user),
        **more,
    )


async def noting_usage(
    request: Request, served: ServedModel, handle: GenerationHandle, events: AsyncGenerator[str, None]
) -> AsyncIterator[str]:
    """The events of a stream; at its end, however it comes, :func:`note_usage`."""
    try:
        async with aclosing(events):
            async for line in events:
                yield line
    finally:
        note_usage(request, served, handle.usage)


def client_of(request: Request, user: str | None) -> str:
    """Whom running time is shared between: keys and the users they name, or else addresses."""
    key = request.headers.get("authorization") or request.headers.get("x-api-key") or ""
    address = "" if request.client is None else request.client.host
    return hashlib.sha256(f"{key}\n{user if user is not None else address}".encode()).hexdigest()


def note(request: Request, **facts: Any) -> None:
    """Adds facts to the request's line in the log."""
    request.scope["state"].setdefault("log", {}).update(facts)


def note_usage(request: Request, served: ServedModel, usage: Usage) -> None:
    """Adds a generation's numbers to the request's line in the log."""
    note(
        request,
        model=served.name,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        queued_seconds=round(usage.queued_seconds, 4),
        prefill_seconds=round(usage.prefill_seconds, 4),
        decode_seconds=round(usage.decode_seconds, 4),
    )
