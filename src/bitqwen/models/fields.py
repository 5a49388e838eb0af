"""Look-ups in a model's configuration, which nobody has checked yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitqwen.errors import CheckpointError


class Fields:
    """Typed, bounded values of a mapping.

    Args:
        values: the configuration.
        source: where it was read, for messages.
        spelled: what the source itself calls a key, where that differs.
    """

    def __init__(
        self, values: Mapping[str, Any], source: str, spelled: Mapping[str, str] | None = None
    ) -> None:
        self._values = values
        self._source = source
        self._spelled = spelled or {}

    def spelled(self, key: str) -> str:
        """The key as the source spells it."""
        return self._spelled.get(key, key)

    def get(self, key: str) -> Any:
        """The value as it is; ``None`` if there is none."""
        return self._values.get(key)

    def _refusal(self, key: str, allowed: str) -> CheckpointError:
        value = self._values.get(key)
        given = "missing" if value is None else repr(value)[:80]
        return CheckpointError(
            f"{self._source}: {self.spelled(key)} is {given}; {allowed} is allowed",
            hint="The configuration is damaged or belongs to another kind of model: fetch it again.",
        )

    def integer(self, key: str, high: int, default: int | None = None) -> int:
        """An integer from 1 to ``high``.

        Raises:
            CheckpointError: it is something else, or missing without a default.
        """
        value = self._values.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            raise self._refusal(key, f"an integer from 1 to {high}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number from ``low`` to ``high``.

        Raises:
            CheckpointError: it is something else (NaN too), or missing without a default.
        """
        value = self._values.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self._refusal(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false.

        Raises:
            CheckpointError: it is something else.
        """
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._refusal(key, "true or false")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A group of settings; empty if there is none.

        Raises:
            CheckpointError: it is something else.
        """
        value = self._values.get(key)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self._refusal(key, "a group of settings")
        return value
