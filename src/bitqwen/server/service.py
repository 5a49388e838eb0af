"""What every endpoint works with: the settings and the models that are served."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from starlette.requests import Request

from bitqwen.server.errors import ApiError
from bitqwen.server.metrics import Metrics
from bitqwen.server.scheduler import Scheduler

if TYPE_CHECKING:
    from bitqwen.generation.language_model import LanguageModel
    from bitqwen.server.sequence import Job
    from bitqwen.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_CONTEXTS = 4  # that the KV cache has room for, unless the settings say more

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ServedModel:
    """One loaded model and its scheduler.

    Attributes:
        name: what ``/v1/models`` lists and responses say.
        aliases: further names that requests may use.
        created: Unix time at which it was loaded.
        language_model: for its tokenizer, template and recommended sampling; the engine is the scheduler's.
        scheduler: where generation requests go.
    """

    def __init__(
        self, name: str, aliases: Sequence[str], language_model: LanguageModel, settings: ServerSettings
    ) -> None:
        self.name = name
        self.aliases = tuple(aliases)
        self.created = int(time.time())
        self.language_model = language_model
        self.scheduler = Scheduler(language_model, settings)

    async def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Token ids of a conversation, by the model's chat template.

        Raises:
            UsageError: messages that the template refuses.
        """
        return await in_thread(
            self.language_model.encode_prompt,
            messages,
            tools=tools,
            continue_final_message=continue_final_message,
        )


class Service:
    """The server's state.

    Attributes:
        settings: of the server.
        draining: set when the server was told to stop.
        failure: what kept the model from being loaded.
        metrics: numbers for ``/metrics``.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.draining = False
        self.failure: BaseException | None = None
        self.metrics = Metrics(self)
        self._models: dict[str, ServedModel] = {}

    def load(self) -> None:
        """Loads the model of the settings; takes as long as that takes.

        Raises:
            BitqwenError: as :func:`bitqwen.load`.
        """
        from bitqwen.engine.model import DEFAULT_CONTEXT
        from bitqwen.generation.language_model import LanguageModel
        from bitqwen.generation.loading import gguf_path

        settings = self.settings
        contexts = _CONTEXTS * (settings.context or DEFAULT_CONTEXT)
        path = gguf_path(settings.model)
        language_model = LanguageModel.load(
            path,
            threads=settings.threads,
            context=settings.context,
            cache_positions=settings.cache_positions or contexts,
            kv=settings.kv,
            batch=max(512, settings.step_tokens),
        )
        self.add(model_name(settings.model, path), language_model)

    async def start(self, on_failure: Callable[[], None]) -> None:
        """Loads beside the event loop, so that ``/health`` can answer meanwhile."""
        try:
            await in_thread(self.load)
        except Exception as error:
            self.failure = error
            on_failure()

    def add(self, name: str, language_model: LanguageModel) -> ServedModel:
        """Serves a loaded model under ``name`` and the settings' aliases."""
        served = ServedModel(name, self.settings.alias, language_model, self.settings)
        served.scheduler.loop.on_step = partial(self.metrics.note_step, name)
        served.scheduler.loop.on_end = partial(self._note_end, served)
        for known in (name, *served.aliases):
            self._models[known] = served
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

    def models(self) -> list[ServedModel]:
        """Everything that is served, once each."""
        return list(dict.fromkeys(self._models.values()))

    async def model(self, name: str) -> ServedModel:
        """The model that a request names.

        Raises:
            ApiError: 404, which lists the names that there are; 503 while it is loading.
        """
        if not self._models:
            raise ApiError(503, "The model is still loading.", code="loading", headers={"retry-after": "5"})
        served = self._models.get(name)
        if served is None:
            raise ApiError(
                404,
                f"There is no model '{name:.200}'; there is: {', '.join(self._models)}.",
                code="model_not_found",
                param="model",
            )
        return served

    def close(self) -> None:
        """Ends all requests and frees the models."""
        for served in self.models():
            served.scheduler.close()
            served.language_model.close()
        self._models.clear()


def model_name(source: str, path: Path) -> str:
    """What a model is called: a hub id as it stands, a file or folder by its name."""
    if Path(source).exists():
        return path.stem if Path(source).is_file() else Path(source).resolve().name
    return source.removeprefix("package:")


def service_of(request: Request) -> Service:
    """The service behind a request."""
    return cast("Service", request.app.state.service)


async def in_thread(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Runs what takes more than a moment, such as tokenising a long prompt, beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
