"""What goes wrong between a client and the server: one exception, which each API spells in its own shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitqwen.errors import (
    BitqwenError,
    ContextLengthError,
    ResourceError,
    UsageError,
)


class ApiError(Exception):
    """An answer other than the one asked for.

    Attributes:
        status: HTTP status.
        message: what was given, what is allowed, what to do next.
        code: a word for programs, such as "unsupported_parameter".
        param: the request's field that is to blame, such as "messages.0.content".
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


def invalid(message: str, param: str | None = None, *, code: str | None = None) -> ApiError:
    """400: the request asks for something that is not allowed."""
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, reason: str) -> ApiError:
    """400: the API knows the parameter, this server does not do it."""
    return ApiError(
        400, f"The parameter '{param}' is not supported: {reason}", code="unsupported_parameter", param=param
    )


def overloaded(message: str, retry_after: int) -> ApiError:
    """503, with the seconds after which another try makes sense."""
    return ApiError(503, message, code="overloaded", headers={"retry-after": str(max(1, retry_after))})


def deadline_passed(seconds: float) -> ApiError:
    """504: the request was given up after its time limit."""
    return ApiError(
        504,
        f"The request took longer than the server's limit of {seconds:g} s and was stopped.",
        code="deadline_exceeded",
    )


def from_exception(error: BaseException) -> ApiError:
    """What a client may know of an exception; an unexpected one's text stays in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, _text(error), code="context_length_exceeded")
    if isinstance(error, UsageError):
        return ApiError(400, _text(error))
    if isinstance(error, ResourceError):
        return overloaded(_text(error), 5)
    return ApiError(500, "The server failed to answer this request; its log says why.", code="server_error")


def _text(error: BitqwenError) -> str:
    return f"{error.message} {error.hint}" if error.hint else error.message


_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def openai_body(error: ApiError) -> dict[str, Any]:
    """The error as OpenAI's API spells it; also the shape of everything outside the other APIs."""
    kind = "server_error" if error.status == 500 else "invalid_request_error"
    return {
        "error": {
            "message": error.message,
            "type": _OPENAI_TYPES.get(error.status, kind),
            "param": error.param,
            "code": error.code,
        }
    }
