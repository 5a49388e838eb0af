"""A tiny model behind the application, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server needs bitqwen[serve]")
pytest.importorskip("pydantic_settings", reason="the server needs bitqwen[serve]")

from bitqwen.convert import convert
from bitqwen.generation.language_model import LanguageModel
from bitqwen.server.scheduler import Scheduler
from bitqwen.server.settings import ServerSettings


@pytest.fixture(scope="session")
def tiny_gguf(tiny_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose greedy answers go on for ever: no control token is ever the likeliest."""
    from helpers.tiny_checkpoint import write_safetensors
    from helpers.tiny_tokenizer import CONTROL, tiny_tokenizer

    made = tiny_checkpoint(context=1024)
    for name in CONTROL:
        # The head is the embedding: a row of zeros scores zero, and some other row always scores more.
        made.weights["model.embed_tokens.weight"][tiny_tokenizer().token_to_id(name)] = 0
    write_safetensors(made.folder / "model.safetensors", made.weights, "BF16")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    convert(made.folder, path, "f16")
    return path


LoadTiny = Callable[..., LanguageModel]


@pytest.fixture(scope="session")
def load_tiny(tiny_gguf: Path) -> LoadTiny:
    def load(**options: Any) -> LanguageModel:
        return LanguageModel.load(
            tiny_gguf, **{"context": 512, "cache_positions": 4096, "threads": 2} | options
        )

    return load


@pytest.fixture(scope="session")
def language_model(load_tiny: LoadTiny) -> LanguageModel:
    """For what a generation should give; the schedulers of tests have models of their own."""
    return load_tiny()


@pytest.fixture
def start_scheduler(load_tiny: LoadTiny) -> Iterator[Callable[..., Scheduler]]:
    """``start_scheduler(load={...}, **settings)``: schedulers that end with the test."""
    started: list[Scheduler] = []

    def start(load: dict[str, Any] | None = None, **settings: Any) -> Scheduler:
        scheduler = Scheduler(load_tiny(**(load or {})), ServerSettings(model="tiny", **settings))
        started.append(scheduler)
        return scheduler

    yield start
    for scheduler in started:
        scheduler.close()
