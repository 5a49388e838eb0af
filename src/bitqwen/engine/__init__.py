"""The engine: a model in memory, sessions (one token sequence each) and batches of sessions."""

from __future__ import annotations

from .batch import Batch
from .model import Model
from .profile import OperationTime, Profile
from .screen import Screen
from .session import Session

__all__ = ["Batch", "Model", "OperationTime", "Profile", "Screen", "Session"]
