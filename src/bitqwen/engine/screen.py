"""Which logits a caller will look at; a screened head computes only rows that can be among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitqwen.errors import UsageError


@dataclass(frozen=True, eq=False)
class Screen:
    """The logits that will be looked at; all others may be -infinity instead of what they are.

    Those that are computed are the full head's to the last bit. One that should be among them is left out
    with a probability below 1e-5 a token. Without effect on a model without a screened head, and where
    most rows would have to be computed: ``top`` above 128, or a ``margin`` above 8 without it.

    Attributes:
        top: so many of the highest; None: however many.
        margin: those at most so far below the highest; None: however far. With ``top``, those that are both.
        rows: logits from here on are padding, and not looked at; None: all are real.
        lowered: ids whose logits the caller will lower, or forbid, before it looks: none of them counts as
            high. int32 [ids].

    Raises:
        UsageError: neither ``top`` nor ``margin`` is given, ``top`` is below 1 or ``margin`` below 0.
    """

    top: int | None = None
    margin: float | None = None
    rows: int | None = None
    lowered: Sequence[int] | npt.NDArray[np.int32] = ()

    def __post_init__(self) -> None:
        if self.top is None and self.margin is None:
            raise UsageError("a screen needs top or margin", hint="Screen(top=1) is for greedy decoding.")
        if self.top is not None and self.top < 1:
            raise UsageError(f"top is {self.top}; it must be at least 1")
        if self.margin is not None and not self.margin >= 0:
            raise UsageError(f"margin is {self.margin}; it must be at least 0")

    @property
    def native(self) -> tuple[int, float, int, bytes]:
        """As the native engine takes it."""
        return (
            self.top or 0,
            -1.0 if self.margin is None else self.margin,
            self.rows or 0,
            np.asarray(self.lowered, dtype=np.int32).tobytes(),
        )


def native_screens(screens: Sequence[Screen | None]) -> list[tuple[int, float, int, bytes]]:
    """The same for several sequences, None being all logits."""
    return [(0, -1.0, 0, b"") if screen is None else screen.native for screen in screens]
