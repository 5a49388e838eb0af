"""Is the server alive, may it be sent requests, and how is it doing?"""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bitqwen.server.operations import Operation, describe
from bitqwen.server.service import Service, service_of


def state(service: Service) -> str:
    """One word: loading, ok, overloaded (the queue is full), broken or draining."""
    if service.failure is not None:
        return "broken"
    served = service.models()
    if any(offer.pinned and service.residents.find(offer.name) is None for offer in service.catalog.offers()):
        return "loading"
    if any(model.scheduler.broken for model in served):
        return "broken"
    if service.draining:
        return "draining"
    if served and all(model.scheduler.full for model in served):
        return "overloaded"
    return "ok"


@describe(Operation("The server's state; 200 while it is ok or overloaded, else 503."))
async def health(request: Request) -> JSONResponse:
    """Answers whether restarting the server would help."""
    service = service_of(request)
    word = state(service)
    body = {
        "status": word,
        "models": {
            served.name: {"running": served.scheduler.running, "queued": served.scheduler.queued}
            for served in service.models()
        },
    }
    return JSONResponse(body, 200 if word in {"ok", "overloaded"} else 503)


@describe(Operation("200 if a request sent now would be taken, else 503."))
async def ready(request: Request) -> JSONResponse:
    """Answers whether to send requests here."""
    word = state(service_of(request))
    return JSONResponse({"status": word}, 200 if word == "ok" else 503)


@describe(Operation("Metrics in Prometheus' text format."))
async def metrics(request: Request) -> Response:
    """Answers what ``bitqwen.server.metrics`` lists."""
    registry = service_of(request).metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def routes() -> list[Route]:
    """The routes of this module."""
    return [
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
