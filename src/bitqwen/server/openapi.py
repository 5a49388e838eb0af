"""The interfaces as an OpenAPI document, made from the models that check the requests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bitqwen.server.operations import Operation

_REFERENCES = "#/components/schemas/{model}"
_ERRORS = {
    "400": "What was asked for is not allowed; the error names the parameter.",
    "401": "The API key is missing or wrong.",
    "403": "The web page that sends the request may not.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "500": "The server failed.",
    "503": "The server is loading, full or shutting down; Retry-After says when to come back.",
    "504": "The request took too long.",
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of all endpoints that describe themselves."""
    from bitqwen import __version__

    described = [
        (route, operation)
        for route in routes
        if isinstance(operation := getattr(route.endpoint, "operation", None), Operation)
    ]
    bodies = {operation.body for _, operation in described if operation.body is not None}
    answers = {operation.returns for _, operation in described if operation.returns is not None}
    keyed = [
        *((model, "validation") for model in sorted(bodies, key=lambda model: model.__name__)),
        *((model, "serialization") for model in sorted(answers, key=lambda model: model.__name__)),
    ]
    references, schemas = models_json_schema(keyed, ref_template=_REFERENCES)  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for route, operation in described:
        path = re.sub(r":\w+}", "}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _operation(path, operation, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "bitqwen", "version": __version__},
        "security": [{}, {"bearer": []}, {"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(path: str, operation: Operation, references: dict[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.returns is not None:
        content["application/json"] = {"schema": references[operation.returns, "serialization"]}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {
        "200": {"description": "The answer.", **({"content": content} if content else {})}
    }
    responses |= {status: {"description": what} for status, what in _ERRORS.items()}
    described: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    names = re.findall(r"{(\w+)}", path)
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if operation.body is not None:
        body = {"schema": references[operation.body, "validation"]}
        described["requestBody"] = {"required": True, "content": {"application/json": body}}
    return described


def route_for(routes: Sequence[Route]) -> Route:
    """``GET /openapi.json`` for the given routes; the document is made once."""
    made = document(routes)

    async def openapi(request: Request) -> JSONResponse:
        return JSONResponse(made)

    return Route("/openapi.json", openapi, methods=["GET"])
