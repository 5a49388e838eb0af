"""What every request passes: an id, a line in the log, the key, and the origin of the page that sent it."""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitqwen.server.errors import ApiError, from_exception
from bitqwen.server.streams import ClientGone

access_log = logging.getLogger("bitqwen.access")
logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_OPEN_PATHS = frozenset({"/health", "/ready", "/", "/favicon.ico"})


class Gate:
    """Middleware around the whole application.

    Args:
        app: the application.
        keys: one of which a request must carry; none lets everybody in.
        origins: web pages that may send requests, beside those of this server itself; "*" for all.
        respond: makes the response for an error, in the shape of the API that was called.
        on_answer: called after each request with its path, status and seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        origins: Sequence[str],
        respond: Callable[[Scope, ApiError], ASGIApp],
        on_answer: Callable[[str, int, float], None],
    ) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._origins = frozenset(origins)
        self._respond = respond
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 0
        complete = False

        async def send_noting(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["x-request-id"] = request_id
                self._allow_origin(headers, out)
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            await send(message)

        try:
            try:
                self._check(scope, headers)
                if scope["method"] == "OPTIONS":  # a browser asks whether its page may send a request
                    await Response(status_code=204)(scope, receive, send_noting)
                else:
                    await self._app(scope, receive, send_noting)
            except ClientGone:
                status = status or 499  # nginx's number for it; nobody is there to read a response
            except Exception as error:
                answer = from_exception(error)
                if answer.status == 500:
                    logger.exception("request %s failed", request_id)
                if status and not complete:
                    raise  # the response has begun: only cutting it off can tell
                if not status:
                    await self._respond(scope, answer)(scope, receive, send_noting)
        finally:
            for finish in scope["state"].pop("at_end", ()):
                finish()
            seconds = time.perf_counter() - started
            self._on_answer(scope["path"], status, seconds)
            access_log.info(
                {
                    "request_id": request_id,
                    "client": (scope.get("client") or ("",))[0],
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(seconds, 4),
                    **scope["state"].get("log", {}),
                }
            )

    def _check(self, scope: Scope, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is not None and not self._trusts(origin, headers):
            raise ApiError(
                403,
                f"Web pages of {origin:.200} may not use this server; --cors-origin lets them.",
                code="origin_not_allowed",
            )
        if scope["method"] == "OPTIONS" or scope["path"] in _OPEN_PATHS or not self._keys:
            return
        given = _key(headers).encode()
        # All are compared, so that the time tells nothing about any of them.
        if not sum(hmac.compare_digest(given, key) for key in self._keys):
            raise ApiError(
                401,
                "The API key is missing or wrong; send 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )

    def _trusts(self, origin: str, headers: Headers) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        return urlsplit(origin).netloc == headers.get("host", "")

    def _allow_origin(self, headers: Headers, out: MutableHeaders) -> None:
        origin = headers.get("origin")
        if origin is not None and ("*" in self._origins or origin in self._origins):
            out["access-control-allow-origin"] = origin
            out["access-control-allow-methods"] = "GET, POST, OPTIONS"
            out["access-control-allow-headers"] = headers.get("access-control-request-headers", "*")
            out["access-control-expose-headers"] = "x-request-id"
            out.add_vary_header("origin")


def _key(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
