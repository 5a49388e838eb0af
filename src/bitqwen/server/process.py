"""The server as a process: what must hold before it listens, and how it ends."""

from __future__ import annotations

import ipaddress
import logging
import socket
from types import FrameType

import uvicorn

from bitqwen.errors import UsageError
from bitqwen.server import logs
from bitqwen.server.app import api_keys, create_app
from bitqwen.server.service import Service
from bitqwen.server.settings import ServerSettings

logger = logging.getLogger(__name__)

# Longer than clients keep a connection (httpx, and so openai's and anthropic's: 5 s): whoever closes first
# must not be the server, which may do so just when the next request is on its way.
_IDLE_SECONDS = 75


def serve(settings: ServerSettings) -> None:
    """Listens and answers until SIGTERM or Ctrl-C; then finishes what runs, for ``drain_seconds`` at most.

    Raises:
        UsageError: settings that would let strangers in, or that contradict each other.
        BitqwenError: the model cannot be loaded.
        OSError: the address or a file cannot be used.
    """
    check(settings)
    service = Service(settings)
    logs.configure(settings.log_level)
    logger.info({"event": "settings", **settings.model_dump(mode="json")})
    server: _Server

    def stop() -> None:
        server.should_exit = True

    app = create_app(settings, service, on_failure=stop)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    server = _Server(config, service)
    server.run()
    if service.failure is not None:
        raise service.failure


def check(settings: ServerSettings) -> None:
    """Refuses settings that would let strangers in, or that contradict each other.

    Raises:
        UsageError: says which, and what to do.
        OSError: the file of keys cannot be read.
    """
    if not _loopback(settings.host) and not api_keys(settings) and not settings.insecure:
        raise UsageError(
            f"{settings.host} can be reached from other machines, and no API key is set.",
            hint="Give --api-key-file FILE, or --insecure if everybody may use the server.",
        )
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise UsageError("TLS needs a certificate and its key.", hint="Give --tls-cert and --tls-key.")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and says where."""
        await super().startup(sockets)
        scheme = "https" if self.config.is_ssl else "http"
        for listening in getattr(self, "servers", []):
            for one in listening.sockets:
                host, port = one.getsockname()[:2]
                shown = f"[{host}]" if ":" in host else host
                logger.info({"event": "listening", "url": f"{scheme}://{shown}:{port}"})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stops taking requests; ``/ready`` says so on connections that are open."""
        self._service.draining = True
        super().handle_exit(sig, frame)
