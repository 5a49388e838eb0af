"""Random JSON schemas over everything that users write: a stand-in for their variety."""

from __future__ import annotations

import random
from typing import Any

_NAMES = ["name", "a b", "é", 'quo"te', "x", "items", "kind", "count", "日本", "back\\slash"]
_VALUES = ["red", "", "é\n", 'a "b"', 0, -7, 3.5, True, False, None, [1, "x"], {"k": [None]}]
_PATTERNS = ["^[a-c]{2,4}$", "^\\d{3}-\\d{2}$", "^(yes|no)$", "^[A-Z][a-z]{0,6}\\.txt$"]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4"]


class SchemaMaker:
    """Makes one schema a call; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def schema(self) -> dict[str, Any]:
        """An object, an array or a scalar, at times with definitions that it refers to."""
        schema = self._any(depth=3)
        if self._random.random() < 0.2:
            tree = {
                "type": "object",
                "properties": {
                    "value": self._scalar(),
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
                },
                "required": ["value"],
                "additionalProperties": False,
            }
            return {
                "$defs": {"tree": tree, "leaf": schema},
                "type": "object",
                "properties": {"tree": {"$ref": "#/$defs/tree"}, "leaf": {"$ref": "#/$defs/leaf"}},
                "required": ["leaf", "tree"],
            }
        return schema

    def _any(self, depth: int) -> dict[str, Any]:
        if depth == 0:
            return self._scalar()
        return self._random.choice([self._object, self._object, self._array, self._any_of, self._leaf])(depth)

    def _leaf(self, _depth: int) -> dict[str, Any]:
        return self._scalar()

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._random.sample(_NAMES, self._random.randint(0, 4))
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self._any(depth - 1) for name in names},
            "required": [name for name in names if self._random.random() < 0.6],
        }
        more = self._random.choice([False, True, None, "typed"])
        if more == "typed":
            schema["additionalProperties"] = self._scalar()
        elif more is not None:
            schema["additionalProperties"] = more
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        least = self._random.randint(0, 2)
        schema: dict[str, Any] = {
            "type": "array",
            "items": self._any(depth - 1),
            "minItems": least,
            "maxItems": least + self._random.randint(0, 2),
        }
        if self._random.random() < 0.2:
            schema["prefixItems"] = [self._scalar()]
        return schema

    def _any_of(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self._any(depth - 1) for _ in range(self._random.randint(1, 3))]}

    def _scalar(self) -> dict[str, Any]:
        r = self._random
        low = r.randint(-50, 50)
        return r.choice(
            [
                {"type": "boolean"},
                {"type": "null"},
                {"type": ["string", "null"], "maxLength": 4},
                {"type": "string", "minLength": r.randint(0, 3), "maxLength": r.randint(3, 6)},
                {"type": "string", "pattern": r.choice(_PATTERNS)},
                {"type": "string", "format": r.choice(_FORMATS)},
                {"type": "integer", "minimum": low, "maximum": low + r.randint(0, 99)},
                {"type": "integer", "exclusiveMinimum": low, "maximum": low + 20, "multipleOf": 3},
                {"type": "number", "minimum": low, "exclusiveMaximum": low + r.randint(1, 9)},
                {"type": "integer"},
                {"type": "number"},
                {"enum": r.sample(_VALUES, r.randint(1, 4))},
                {"const": r.choice(_VALUES)},
            ]
        )
