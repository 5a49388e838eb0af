"""Where bitqwen keeps what it fetched or converted for you."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$BITQWEN_CACHE``, or this system's place for a user's caches."""
    chosen = os.environ.get("BITQWEN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("bitqwen", appauthor=False))
