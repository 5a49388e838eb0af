"""From a request to a handler's arguments: the body within its limits, checked by its model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from bitqwen.server.errors import ApiError
from bitqwen.server.schemas import Strict, parse
from bitqwen.server.service import service_of
from bitqwen.server.streams import ClientGone

Body = TypeVar("Body", bound=Strict)
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Operation:
    """What the published OpenAPI document says of an endpoint.

    Attributes:
        summary: one sentence.
        body: model of the request's body.
        returns: model of the response's body; ``None`` if it is no JSON.
        streams: whether it may answer with server-sent events.
    """

    summary: str
    body: type[Strict] | None = None
    returns: type[BaseModel] | None = None
    streams: bool = False


def describe(operation: Operation) -> Callable[[Endpoint], Endpoint]:
    """Attaches what OpenAPI says of an endpoint without a body."""

    def attach(endpoint: Endpoint) -> Endpoint:
        endpoint.operation = operation  # type: ignore[attr-defined]
        return endpoint

    return attach


def takes(
    body: type[Body], summary: str, *, returns: type[BaseModel] | None = None, streams: bool = False
) -> Callable[[Callable[[Request, Body], Awaitable[Response]]], Endpoint]:
    """Makes an endpoint of a handler that takes a request and its checked body.

    Args:
        body: model of the body.
        summary: for the OpenAPI document.
        returns: model of the response.
        streams: whether the handler may answer with server-sent events.
    """

    def wrap(handler: Callable[[Request, Body], Awaitable[Response]]) -> Endpoint:
        @wraps(handler)
        async def endpoint(request: Request) -> Response:
            return await handler(request, parse(body, await read_body(request)))

        return describe(Operation(summary, body, returns, streams))(endpoint)

    return wrap


async def read_body(request: Request) -> bytes:
    """The body, if it is small enough and arrives in time.

    Raises:
        ApiError: 413 or 408.
        ClientGone: the connection closed before its end.
    """
    settings = service_of(request).settings
    limit = settings.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)

    async def read() -> bytes:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > limit:
                raise _too_large(limit)
        return bytes(data)

    try:
        return await asyncio.wait_for(read(), settings.body_seconds)
    except asyncio.TimeoutError:  # another class before Python 3.11
        raise ApiError(
            408,
            f"The body did not arrive within {settings.body_seconds:g} s.",
            headers={"connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ClientGone from None


def _too_large(limit: int) -> ApiError:
    # The rest of the body is not read, so the connection cannot be used again.
    return ApiError(
        413,
        f"The body is larger than {limit} bytes, which is the server's limit.",
        code="body_too_large",
        headers={"connection": "close"},
    )


def any_of(*values: Any) -> Any:
    """The first value that is not ``None``."""
    return next((value for value in values if value is not None), None)
