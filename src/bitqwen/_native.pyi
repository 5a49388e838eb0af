"""The C++ core, as Python sees it: one section for each file of native/bindings/."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# -- sampling ----------------------------------------------------------------------------------------------

class Sampler:
    def __init__(
        self,
        vocab_size: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 0,
        seed: int = 0,
        logit_bias: Sequence[tuple[int, float]] = ...,
    ) -> None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    def add_prompt(self, tokens: Sequence[int]) -> None: ...
    def accept(self, token: int) -> None: ...
    def sample(self, logits: NDArray[np.float32], allowed: NDArray[np.uint32] | None = None) -> int: ...
    def distribution(
        self, logits: NDArray[np.float32], allowed: NDArray[np.uint32] | None = None
    ) -> list[tuple[int, float]]: ...

def token_logprobs(
    logits: NDArray[np.float32], token: int, top: int = 0
) -> tuple[float, list[tuple[int, float]]]: ...
