"""The chat page at ``/``: one file without a build step, which talks to this server and to nobody else."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib import resources

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from bitqwen.server.operations import Operation, describe
from bitqwen.server.service import service_of


@functools.cache
def page() -> tuple[str, dict[str, str]]:
    """The page with its style and script in it, and the headers that let these and nothing else run."""
    folder = resources.files(__name__)
    html, style, script = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("index.html", "page.css", "page.js")
    )
    policy = {
        "default-src": "'none'",
        "script-src": _digest(script),
        "style-src": _digest(style),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return html.replace("/*style*/", style).replace("/*script*/", script), headers


def _digest(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@describe(Operation("The chat page."))
async def index(request: Request) -> HTMLResponse:
    """``GET /``; 404 with ``--no-ui``."""
    if not service_of(request).settings.ui:
        raise HTTPException(404)
    html, headers = page()
    return HTMLResponse(html, headers=headers)


def routes() -> list[Route]:
    """The routes of this module."""
    return [Route("/", index, methods=["GET"])]
