"""Several sessions in one step: the weights are read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .screen import Screen, native_screens
from .session import Session

if TYPE_CHECKING:
    from .model import Model


class Batch:
    """Steps over several sessions of one model."""

    def __init__(self, model: Model) -> None:
        self._native = model._native

    def step(
        self,
        work: Sequence[tuple[Session, Sequence[int]]],
        *,
        wanted: Sequence[bool] | None = None,
        screens: Sequence[Screen | None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Appends ids to each session; float32 [len(work), vocab_size] after each one's last id.

        With ``wanted``, only the sessions for which it is true have a row: a part of a prompt that is not
        its last needs none. With ``screens``, those logits of each that will be looked at: a model with a
        screened head leaves out others where every session of the step has a screen, there are at most 4
        and they need few rows together. Otherwise the result for a session does not depend on what else is
        in the step, to the last bit. On an error no session has changed.

        Raises:
            ContextLengthError: a session's context would overflow.
            ResourceError: the KV cache is full.
            UsageError: no ids for a session, one outside the vocabulary, or a session given twice.
        """
        rows = ["last"] * len(work) if wanted is None else ["last" if want else "none" for want in wanted]
        out = self._native.forward(
            [(session.sequence, list(ids), row) for (session, ids), row in zip(work, rows, strict=True)],
            screens=native_screens(list(screens)) if screens is not None else [],
        )
        for session, ids in work:
            session.extend(ids)
        return out
