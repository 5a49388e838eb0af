"""Whether a model's output matrix is worth a screen: by what a token would read less."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bitqwen import _native

if TYPE_CHECKING:
    from bitqwen.models.qwen2 import Qwen2Config

_COMPUTED = 0.05  # of the rows, beside the screen; a greedy token needs fewer, one of the 20 best a few more
_LEAST_SAVED = 0.08


class Tensor(Protocol):
    """What is asked of a file's tensor."""

    @property
    def name(self) -> str:
        """As the file has it."""
        ...

    @property
    def nbytes(self) -> int:
        """Of its data."""
        ...


class HeadChoice(NamedTuple):
    """Whether to screen, and why in a sentence."""

    screened: bool
    reason: str


def choose(config: Qwen2Config, tensors: Iterable[Tensor]) -> HeadChoice:
    """A screen is kept where a token then reads at least 8 % less.

    Args:
        config: the model's hyperparameters.
        tensors: of its file.
    """
    block = _native.SCREEN_BLOCK
    if config.hidden_size % block:
        return HeadChoice(False, f"its rows of {config.hidden_size} values are no multiple of {block}")
    nbytes = {tensor.name: tensor.nbytes for tensor in tensors}
    embedding = nbytes.get("token_embd.weight", 0)
    head = nbytes.get("output.weight", embedding)
    token = sum(nbytes.values()) - (embedding if "output.weight" in nbytes else 0)
    saved = head * (1 - _COMPUTED) - _native.screen_bytes(config.vocab_size, config.hidden_size)
    share = saved / token if token else 0.0
    words = f"a token then reads {max(share, 0.0):.0%} less; 8 % is the least that is worth its memory"
    return HeadChoice(share >= _LEAST_SAVED, words)
