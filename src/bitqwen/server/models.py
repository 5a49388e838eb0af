"""OpenAI's ``/v1/models``: what may be asked for, in memory or not."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitqwen.server.catalog import Offer
from bitqwen.server.openai_responses import ModelCard, ModelList
from bitqwen.server.operations import Operation, describe
from bitqwen.server.service import Service, service_of


@describe(Operation("Lists the models.", returns=ModelList))
async def list_all(request: Request) -> Response:
    """``GET /v1/models``."""
    service = service_of(request)
    cards = [_card(service, offer) for offer in service.offers()]
    return JSONResponse({"object": "list", "data": cards})


@describe(Operation("Describes one model.", returns=ModelCard))
async def retrieve(request: Request) -> Response:
    """``GET /v1/models/{model}``."""
    service = service_of(request)
    return JSONResponse(_card(service, service.offer(request.path_params["model"])))


def _card(service: Service, offer: Offer) -> dict[str, Any]:
    served = service.residents.find(offer.name)
    return {
        "id": offer.name,
        "object": "model",
        "created": offer.created if served is None else served.created,
        "owned_by": "bitqwen",
        "context_length": None if served is None else served.language_model.context,
        "aliases": list(offer.aliases),
        "state": service.residents.state(offer.name),
    }


def routes() -> list[Route]:
    """The routes of this module."""
    return [
        Route("/v1/models", list_all, methods=["GET"]),
        Route("/v1/models/{model:path}", retrieve, methods=["GET"]),
    ]
