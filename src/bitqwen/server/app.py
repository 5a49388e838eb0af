"""The application: the API modules, the gate before them, and each API's way to spell an error.

A new API is a module with ``routes() -> list[Route]`` in ``API_MODULES``. Its endpoints come from
:func:`bitqwen.server.operations.takes`, find what they need through
:func:`bitqwen.server.service.service_of`, submit a ``GenerationRequest`` to the model's scheduler and
translate the ``Delta``s that come back. They raise ``ApiError`` or any ``BitqwenError``; an API that spells
errors in its own way adds its function to ``ERROR_BODIES``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from bitqwen.errors import BitqwenError
from bitqwen.server import (
    anthropic,
    health,
    models,
    openai_chat,
    openai_completions,
    openai_embeddings,
    page,
    responses,
    tokens,
)
from bitqwen.server.errors import ApiError, from_exception, openai_body
from bitqwen.server.gate import Gate
from bitqwen.server.openapi import route_for
from bitqwen.server.service import Service
from bitqwen.server.settings import ServerSettings


class ApiModule(Protocol):
    """A module that answers some of the paths."""

    def routes(self) -> list[Route]:
        """Its routes."""


API_MODULES: tuple[ApiModule, ...] = (
    anthropic,
    health,
    models,
    openai_chat,
    openai_completions,
    openai_embeddings,
    page,
    responses,
    tokens,
)

ERROR_BODIES: dict[str, Callable[[ApiError], dict[str, Any]]] = {"/v1/messages": anthropic.error_body}
"""How errors are spelt below a path, such as "/v1/messages"; everywhere else as OpenAI does."""


def create_app(
    settings: ServerSettings, service: Service | None = None, *, on_failure: Callable[[], None] = lambda: None
) -> ASGIApp:
    """The whole server as an ASGI application.

    Args:
        settings: of the server.
        service: one that is loaded already; by default the settings' model is loaded when the application
            starts, and ``/health`` says so.
        on_failure: called when it cannot be loaded; ``service.failure`` says why.
    """
    service = service or Service(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start(on_failure))
        yield
        service.draining = True
        await starting
        await service.close()

    routes = [route for module in API_MODULES for route in module.routes()]
    app = Starlette(
        routes=[*routes, route_for(routes)],
        lifespan=lifespan,
        exception_handlers={
            ApiError: _refuse,
            BitqwenError: _refuse,
            HTTPException: _refuse_route,
            Exception: _fail,
        },
    )
    app.state.service = service
    known = [route.path for route in app.routes if isinstance(route, Route)]

    def on_answer(path: str, status: int, seconds: float) -> None:
        service.metrics.note_request(_label(path, known), status, seconds)

    return Gate(app, api_keys(settings), settings.cors_origins, error_response, on_answer)


def _label(path: str, known: Sequence[str]) -> str:
    """A path for the metrics: one of ``known``, or "other", since anybody may ask for anything."""
    if path in known:
        return path
    return next((one for one in known if "{" in one and path.startswith(one.partition("{")[0])), "other")


def api_keys(settings: ServerSettings) -> list[str]:
    """All keys, from the settings and the key file.

    Raises:
        OSError: the file cannot be read.
    """
    keys = [key.get_secret_value() for key in settings.api_keys]
    if settings.api_key_file is not None:
        lines = Path(settings.api_key_file).read_text(encoding="utf-8").splitlines()
        keys += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return keys


def error_response(scope: Scope, error: ApiError) -> Response:
    """An error in the shape of the API that was called."""
    path = scope["path"]
    bodies = (
        body for prefix, body in ERROR_BODIES.items() if path == prefix or path.startswith(prefix + "/")
    )
    body = next(bodies, openai_body)(error)
    return JSONResponse(body, error.status, headers=error.headers)


async def _refuse(request: Request, error: Exception) -> Response:
    answer = from_exception(error)
    if answer.status == 500:
        raise error  # the gate logs it
    return error_response(request.scope, answer)


async def _fail(request: Request, error: Exception) -> Response:
    return error_response(request.scope, from_exception(error))


async def _refuse_route(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path
    message, code = {
        404: (f"There is nothing at {path}.", "not_found"),
        405: (f"{request.method} is not a method of {path}.", "method_not_allowed"),
    }.get(error.status_code, (str(error.detail), None))
    answer = ApiError(error.status_code, message, code=code, headers=error.headers)
    return error_response(request.scope, answer)
