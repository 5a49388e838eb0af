"""A model of the engine's interface whose predictions are a table, and what it was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class TableModel:
    """After token t at position i the logits are ``table[t] + i / 100 * slope``: position matters too."""

    def __init__(
        self, vocab_size: int = 97, *, seed: int = 0, scale: float = 3.0, noise: float = 0.0
    ) -> None:
        random = np.random.default_rng(seed)
        self.table = (scale * random.standard_normal((vocab_size, vocab_size))).astype(np.float32)
        self.slope = random.standard_normal(vocab_size).astype(np.float32)
        self.table += np.float32(noise) * np.random.default_rng(seed + 1).standard_normal(
            self.table.shape, np.float32
        )
        self.open_sessions = 0
        self.most_rows = 0

    @property
    def vocab_size(self) -> int:
        return len(self.table)

    def session(self) -> TableSession:
        return TableSession(self)

    def row(self, token: int, position: int) -> Floats:
        return self.table[token] + np.float32(position / 100) * self.slope

    def logits(self, ids: Sequence[int]) -> Floats:
        return np.stack([self.row(token, i) for i, token in enumerate(ids)])


class TableSession:
    def __init__(self, model: TableModel) -> None:
        self._model = model
        self._length = 0
        model.open_sessions += 1

    def feed(self, ids: Sequence[int], *, logits: Any = "last") -> Floats | None:
        assert ids
        assert all(type(token) is int for token in ids)
        rows = np.stack([self._model.row(token, self._length + i) for i, token in enumerate(ids)])
        self._length += len(ids)
        if logits == "none":
            return None
        self._model.most_rows = max(self._model.most_rows, len(rows) if logits == "all" else 1)
        return rows if logits == "all" else rows[-1]

    def close(self) -> None:
        self._model.open_sessions -= 1


def log_softmax(logits: Floats) -> npt.NDArray[np.longdouble]:
    """In extended precision, the plain way."""
    wide = logits.astype(np.longdouble)
    wide = wide - wide.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.longdouble] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result
