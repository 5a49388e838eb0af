"""OpenAI's ``/v1/models``: what is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitqwen.server.openai_responses import ModelCard, ModelList
from bitqwen.server.operations import Operation, describe
from bitqwen.server.service import ServedModel, service_of


@describe(Operation("Lists the models.", returns=ModelList))
async def list_all(request: Request) -> Response:
    """``GET /v1/models``."""
    cards = [_card(served) for served in service_of(request).models()]
    return JSONResponse({"object": "list", "data": cards})


@describe(Operation("Describes one model.", returns=ModelCard))
async def retrieve(request: Request) -> Response:
    """``GET /v1/models/{model}``."""
    return JSONResponse(_card(await service_of(request).model(request.path_params["model"])))


def _card(served: ServedModel) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "bitqwen",
        "context_length": served.language_model.context,
        "aliases": list(served.aliases),
    }


def routes() -> list[Route]:
    """The routes of this module."""
    return [
        Route("/v1/models", list_all, methods=["GET"]),
        Route("/v1/models/{model:path}", retrieve, methods=["GET"]),
    ]
