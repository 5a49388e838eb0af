"""HTTP: OpenAI's and Anthropic's interfaces on one engine.

``app`` puts the rest together. A request goes ``operations`` (body, limits) -> an API module (translation)
-> ``scheduler`` (one engine thread for all requests) -> the API module -> ``streams`` (bytes to the client).
"""

from __future__ import annotations
