"""Server-sent events, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")


class ClientGone(Exception):  # noqa: N818 - the client's wish, not a fault
    """The client closed the connection before it had its answer."""


def event(data: Any, *, name: str | None = None) -> str:
    """One server-sent event: ``data`` as JSON on one line, or as it stands if it is text."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"event: {name}\ndata: {text}\n\n" if name else f"data: {text}\n\n"


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Awaits ``work``, and cancels it when the client closes the connection. The body has been read.

    Raises:
        ClientGone: the client went first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream(Response):
    """A response of server-sent events.

    The events come from an async generator. It is closed, and with it whatever it holds open, when the
    client goes away or reads so slowly that the connection breaks; a slow client holds up only itself,
    since no event is taken from the generator before the one before it was sent.

    Args:
        events: each item is one or more whole events, as :func:`event` makes them.
        ping: sent when nothing else was for ``ping_seconds``, so that proxies keep the connection.
        ping_seconds: that time.
        on_close: called at the end, also if not even the first event was taken.
        headers: further headers.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[str],
        *,
        ping: str = ": ping\n\n",
        ping_seconds: float = 15.0,
        on_close: Callable[[], None],
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            headers={"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})},
        )
        del self.headers["content-length"]
        self._events = events
        self._ping = ping
        self._ping_seconds = ping_seconds
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until they end or the client goes."""
        writer = asyncio.ensure_future(self._write(send))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait({writer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        finally:
            for future in (writer, gone):
                future.cancel()
            await asyncio.gather(writer, gone, return_exceptions=True)
            self._on_close()
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        upcoming: asyncio.Future[str] | None = None
        try:
            while True:
                if upcoming is None:
                    upcoming = asyncio.ensure_future(anext(self._events))
                # Its result is not kept: the end's exception would hold this frame, and the frame it.
                await asyncio.wait({upcoming}, timeout=self._ping_seconds)
                if not upcoming.done():
                    await _send_text(send, self._ping)
                    continue
                try:
                    text = upcoming.result()
                except StopAsyncIteration:
                    break
                finally:
                    upcoming = None
                await _send_text(send, text)
        finally:
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_text(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
