"""A real server in this process: uvicorn on a free port of the loopback interface."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

import uvicorn

from bitqwen.generation.language_model import LanguageModel
from bitqwen.server.app import create_app
from bitqwen.server.service import Service
from bitqwen.server.settings import ServerSettings


class LiveServer:
    """Serves a loaded model as ``tiny``, or those of the settings, while the ``with`` block lasts.

    Attributes:
        service: the server's state.
        url: where it listens.

    Args:
        language_model: what to serve; ``None`` leaves it to the settings.
        scheduler: to use instead of the engine's.
        settings: fields of ``ServerSettings``.
    """

    def __init__(self, language_model: LanguageModel | None, scheduler: Any = None, **settings: Any) -> None:
        if language_model is None:
            self.service = Service(ServerSettings(**settings))
        else:
            self.service = Service(ServerSettings(model="tiny", **settings))
            self.served = self.service.add("tiny", language_model)
        if scheduler is not None:
            self.served.scheduler.close()
            self.served.scheduler = scheduler
        app = create_app(self.service.settings, self.service)
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self.url = ""

    def __enter__(self) -> LiveServer:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive(), "the server does not stop"
