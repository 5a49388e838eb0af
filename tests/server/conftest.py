"""A tiny model behind the server, in this process; for all tests, schedulers and servers end with the test.

``start_app(scheduler=None, load={...}, **settings) -> Client``
    A server on a free port, and a client of it.

``start_scheduler(load={...}, **settings) -> Scheduler``
    What is behind it, alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitqwen.convert import convert
from bitqwen.generation.language_model import LanguageModel

if TYPE_CHECKING:
    from bitqwen.server.scheduler import Scheduler

# Without bitqwen[serve] and the clients of bitqwen[test] there is nothing to test here.
_NEEDED = ("starlette", "uvicorn", "pydantic_settings", "llguidance", "prometheus_client", "httpx", "openai")
collect_ignore_glob = ["test_*.py"] if any(find_spec(name) is None for name in _NEEDED) else []


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
    from bitqwen.server.scheduler import Scheduler
    from bitqwen.server.settings import ServerSettings

    with ExitStack() as stack:

        def start(load: dict[str, Any] | None = None, **settings: Any) -> Scheduler:
            scheduler = Scheduler(load_tiny(**(load or {})), ServerSettings(model="tiny", **settings))
            stack.callback(scheduler.close)
            return scheduler

        yield start


class Client:
    """Sends requests to a live server.

    Attributes:
        live: the server.
        http: an httpx client with the server's address.
    """

    def __init__(self, live: Any, http: Any) -> None:
        self.live = live
        self.http = http

    def post(self, path: str, body: Any, **headers: str) -> Any:
        return self.http.post(path, json=body, headers=headers)

    def get(self, path: str, **headers: str) -> Any:
        return self.http.get(path, headers=headers)


@pytest.fixture
def start_app(load_tiny: LoadTiny) -> Iterator[Callable[..., Client]]:
    import httpx
    from live import LiveServer

    with ExitStack() as stack:

        def start(scheduler: Any = None, load: dict[str, Any] | None = None, **settings: Any) -> Client:
            live = stack.enter_context(LiveServer(load_tiny(**(load or {})), scheduler, **settings))
            return Client(live, stack.enter_context(httpx.Client(base_url=live.url, timeout=60)))

        yield start


@pytest.fixture(scope="module")
def canaries(load_tiny: LoadTiny) -> Iterator[tuple[str, dict[tuple[int, int], str]]]:
    """A server with a tight KV cache for all examples of a property, and the answers known so far."""
    from live import LiveServer

    with LiveServer(load_tiny(cache_positions=768), max_batch=4, prefill_tokens=16) as live:
        yield live.url, {}
