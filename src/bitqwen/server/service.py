"""What every endpoint works with: the settings and the models that are served."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from starlette.requests import Request

from bitqwen.server.catalog import Catalog, Offer, by_name
from bitqwen.server.errors import ApiError
from bitqwen.server.metrics import Metrics
from bitqwen.server.prefix_store import PrefixStore
from bitqwen.server.residents import Residents
from bitqwen.server.served_model import ServedModel
from bitqwen.server.streams import while_connected

if TYPE_CHECKING:
    from bitqwen.generation.language_model import LanguageModel
    from bitqwen.server.sequence import Job
    from bitqwen.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_CONTEXTS = 4  # that the KV cache has room for, unless the settings say more


class Service:
    """The server's state.

    Attributes:
        settings: of the server.
        catalog: what is offered.
        residents: what of it is in memory.
        draining: set when the server was told to stop.
        failure: what kept the model from being loaded that is always there.
        metrics: numbers for ``/metrics``.

    Raises:
        UsageError: the settings name no model, or one that is not there.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.catalog = Catalog(settings)
        self.residents = Residents(self._load, self._estimate, settings.memory_budget, settings.keep_alive)
        self.draining = False
        self.failure: BaseException | None = None
        self.metrics = Metrics(self)
        self.residents.on_load = self.metrics.note_load
        self._unloading: asyncio.Task[None] | None = None

    async def start(self, on_failure: Callable[[], None]) -> None:
        """Loads the model that is always there, if there is one, beside the event loop.

        Args:
            on_failure: called when it cannot be loaded; ``failure`` says why.
        """
        self._unloading = asyncio.create_task(self.residents.unload_idle())
        pinned = next((offer for offer in self.catalog.offers() if offer.pinned), None)
        if pinned is None or self.residents.find(pinned.name) is not None:
            return
        try:
            self.residents.release(await self.residents.lease(pinned))
        except Exception as error:
            self.failure = error
            on_failure()

    async def close(self) -> None:
        """Ends all requests and frees the models."""
        if self._unloading is not None:
            self._unloading.cancel()
        await self.residents.close()

    def add(self, name: str, language_model: LanguageModel) -> ServedModel:
        """Serves a model that is loaded already."""
        offer = by_name(self.catalog.offers()).get(name) or Offer(name, name, pinned=True)
        served = self._serve(offer, language_model)
        self.residents.add(offer, served)
        return served

    def models(self) -> list[ServedModel]:
        """All models in memory."""
        return self.residents.loaded()

    def offers(self) -> list[Offer]:
        """What may be asked for: the catalog, and what is in memory though its file has gone."""
        offers = self.catalog.offers()
        listed = {offer.name for offer in offers}
        return [*offers, *(offer for offer in self.residents.offers() if offer.name not in listed)]

    def offer(self, name: str) -> Offer:
        """What a name stands for.

        Raises:
            ApiError: 404, which lists the names that there are.
        """
        names = by_name(self.offers())
        offer = names.get(name)
        if offer is None:
            there = ", ".join(names)
            raise ApiError(
                404,
                f"There is no model '{name:.200}'; there is: {there[:1000] or 'none'}.",
                code="model_not_found",
                param="model",
            )
        return offer

    async def lease(self, name: str) -> ServedModel:
        """The model that a request names, until ``residents.release``; loaded if it is not.

        Raises:
            ApiError: 404, there is no such name; 503, it is not there yet, there is no room for it, or it
                cannot be loaded.
        """
        offer = self.offer(name)
        if offer.pinned and self.residents.find(offer.name) is None:
            raise ApiError(503, "The model is still loading.", code="loading", headers={"retry-after": "5"})
        return await self.residents.lease(offer)

    def _load(self, offer: Offer) -> ServedModel:
        """Loads a model; takes as long as that takes."""
        from bitqwen.generation.language_model import LanguageModel
        from bitqwen.generation.loading import gguf_path

        settings = self.settings
        path = gguf_path(offer.source)
        language_model = LanguageModel.load(
            path,
            threads=settings.threads,
            context=settings.context,
            cache_positions=self._positions(),
            kv=settings.kv,
            batch=max(512, settings.step_tokens),
            exact_head=settings.exact_head or None,
            numa=settings.numa,
        )
        if language_model.model.placement:
            logger.info({"event": "placed", "model": offer.name, "placement": language_model.model.placement})
        store = None
        if settings.prefix_cache and settings.prefix_cache_dir is not None:
            store = PrefixStore(settings.prefix_cache_dir, path, settings.kv)
        return self._serve(offer, language_model, store)

    def _positions(self) -> int:
        from bitqwen.engine.model import DEFAULT_CONTEXT

        return self.settings.cache_positions or _CONTEXTS * (self.settings.context or DEFAULT_CONTEXT)

    def _estimate(self, offer: Offer) -> int:
        """Bytes that a model will take."""
        from bitqwen.engine import head, memory
        from bitqwen.generation.loading import gguf_path
        from bitqwen.gguf import GGUFFile
        from bitqwen.models.qwen2 import Qwen2Config

        file = GGUFFile(gguf_path(offer.source))
        config = Qwen2Config.from_gguf(file.metadata, file.tensors)
        return sum(
            memory.estimate(
                config,
                weights=sum(tensor.nbytes for tensor in file.tensors.values()),
                context=self._positions(),
                kv=self.settings.kv,
                threads=self.settings.threads,
                batch=max(512, self.settings.step_tokens),
                screened=not self.settings.exact_head and head.choose(config, file.tensors.values()).screened,
            ).values()
        )

    def _serve(
        self, offer: Offer, language_model: LanguageModel, store: PrefixStore | None = None
    ) -> ServedModel:
        served = ServedModel(offer.name, offer.aliases, language_model, self.settings, store)
        served.scheduler.loop.on_step = partial(self.metrics.note_step, served.name)
        served.scheduler.loop.on_end = partial(self._note_end, served)
        return served

    def _note_end(self, served: ServedModel, job: Job, error: BaseException | None) -> None:
        self.metrics.note_end(served.name, job, error)
        if self.settings.log_prompts:
            logger.info(
                {
                    "event": "generation",
                    "model": served.name,
                    "prompt": served.language_model.tokenizer.decode(job.prompt),
                    "answers": [sequence.answer.text for sequence in job.sequences],
                }
            )


def service_of(request: Request) -> Service:
    """The service behind a request."""
    return cast("Service", request.app.state.service)


async def model_of(request: Request, name: str) -> ServedModel:
    """The model that a request names; it stays in memory until the request has been answered.

    Raises:
        ApiError: as :meth:`Service.lease`.
        ClientGone: the client closed the connection while the model was being loaded.
    """
    service = service_of(request)
    served = await while_connected(request, service.lease(name))
    request.scope["state"].setdefault("at_end", []).append(partial(service.residents.release, served))
    return served
