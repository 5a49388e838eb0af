"""A model in memory, and the thread that runs it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bitqwen.server.scheduler import Scheduler

if TYPE_CHECKING:
    from bitqwen.generation.language_model import LanguageModel
    from bitqwen.server.prefix_store import PrefixStore
    from bitqwen.server.settings import ServerSettings

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
        self,
        name: str,
        aliases: Sequence[str],
        language_model: LanguageModel,
        settings: ServerSettings,
        store: PrefixStore | None = None,
    ) -> None:
        self.name = name
        self.aliases = tuple(aliases)
        self.created = int(time.time())
        self.language_model = language_model
        self.scheduler = Scheduler(language_model, settings, store)

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

    def close(self) -> None:
        """Ends its requests; the engine's memory goes with the last reference."""
        self.scheduler.close()
        self.language_model.close()


async def in_thread(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Runs what takes more than a moment, such as tokenising a long prompt, beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
