"""One token sequence and what the model remembers of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.errors import UsageError

from .screen import Screen, native_screens

LogitRows = Literal["last", "all", "none"]


class Session:
    """One sequence in a model's KV cache; closed by :meth:`close`, ``with`` or garbage collection."""

    def __init__(self, native: _native.Model, sequence: int, tokens: Sequence[int] = ()) -> None:
        self._native = native
        self._sequence: int | None = sequence
        self._tokens = list(tokens)

    @property
    def tokens(self) -> list[int]:
        """The ids in the KV cache (a copy)."""
        return list(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def sequence(self) -> int:
        """The native sequence's number.

        Raises:
            UsageError: the session was closed.
        """
        if self._sequence is None:
            raise UsageError("this session was closed", hint="Make a new one with model.session().")
        return self._sequence

    def feed(
        self, ids: Sequence[int], *, logits: LogitRows = "last", screen: Screen | None = None
    ) -> npt.NDArray[np.float32] | None:
        """Appends ids and computes them; on an error or Ctrl-C the session stays as it was.

        Args:
            ids: to append.
            logits: after which ids they are wanted.
            screen: which of them will be looked at; default: all.

        Returns:
            ``"last"``: float32 [vocab_size] after the last id; ``"all"``: [len(ids), vocab_size];
            ``"none"``: None.

        Raises:
            ContextLengthError: the context would overflow.
            ResourceError: the KV cache, shared by all sessions, is full.
            UsageError: no ids, or one outside the vocabulary.
        """
        out = self._native.forward([(self.sequence, list(ids), logits)], screens=native_screens([screen]))
        self.extend(ids)
        if logits == "none":
            return None
        return out[0] if logits == "last" else out

    def hidden(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Appends ids as :meth:`feed` does; the last layer's normalised state of each, for embeddings.

        Returns:
            float32 [len(ids), hidden_size].

        Raises:
            ContextLengthError, ResourceError, UsageError: as :meth:`feed`.
        """
        out = self._native.forward([(self.sequence, list(ids), "all")], hidden=True)
        self.extend(ids)
        return out

    def extend(self, ids: Sequence[int]) -> None:
        """Notes ids that a batch has computed for this session."""
        self._tokens.extend(ids)

    def truncate(self, length: int) -> None:
        """Forgets everything from position ``length`` on.

        Raises:
            UsageError: the session is shorter than that.
        """
        self._native.truncate(self.sequence, length)
        del self._tokens[length:]

    def export_page(self, index: int) -> bytes:
        """One page of the keys and values, for :meth:`import_page` of an equal model.

        Args:
            index: the page holds positions from ``index * model.page_positions`` on.

        Returns:
            ``model.page_bytes`` bytes.

        Raises:
            UsageError: the session does not reach so far.
        """
        return self._native.export_page(self.sequence, index)

    def import_page(self, ids: Sequence[int], data: bytes) -> None:
        """Appends ids whose keys and values are given, instead of computing them.

        Args:
            ids: at most ``model.page_positions``; fewer only if no page follows.
            data: from :meth:`export_page` of a session of the same model, cache type and instruction set.
                Its size is checked, what it says is believed.

        Raises:
            ContextLengthError: the context would overflow.
            ResourceError: the KV cache, shared by all sessions, is full.
            UsageError: no ids or too many, data of another size, or a session that does not end with a page.
        """
        self._native.import_page(self.sequence, data, len(ids))
        self.extend(ids)

    def fork(self) -> Session:
        """A second session with the same content; memory is shared until they differ."""
        return Session(self._native, self._native.fork(self.sequence), self._tokens)

    def close(self) -> None:
        """Gives the sequence's memory back; safe to call again."""
        if self._sequence is not None:
            sequence, self._sequence = self._sequence, None
            self._native.release(sequence)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
