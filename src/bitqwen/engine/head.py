"""Whether a model's output matrix is worth a screen: by what a token would read less."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from bitqwen.models.qwen2 import Qwen2Config

_BLOCK = 128  # rotated columns that share a scale; native/kernels/coarse_rows.h
_BLOCK_BYTES = 34
_COMPUTED = 0.05  # of the rows, beside the screen; a greedy token needs fewer, one of the 20 best a few more
_LEAST_SAVED = 0.08
_SCRATCH_ROWS = 4  # logits rows that one screened step makes


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


def screen_bytes(config: Qwen2Config) -> int:
    """What the output matrix takes in two bits, with four bytes a row beside them."""
    return config.vocab_size * (config.hidden_size // _BLOCK * _BLOCK_BYTES + 4)


def screen_scratch(config: Qwen2Config) -> int:
    """Bytes of scratch for a screened step."""
    return 4 * _SCRATCH_ROWS * config.vocab_size


def choose(config: Qwen2Config, tensors: Iterable[Tensor]) -> HeadChoice:
    """A screen is kept where a token then reads at least 8 % less.

    Args:
        config: the model's hyperparameters.
        tensors: of its file.
    """
    if config.hidden_size % _BLOCK:
        return HeadChoice(False, f"its rows of {config.hidden_size} values are no multiple of {_BLOCK}")
    nbytes = {tensor.name: tensor.nbytes for tensor in tensors}
    embedding = nbytes.get("token_embd.weight", 0)
    head = nbytes.get("output.weight", embedding)
    token = sum(nbytes.values()) - (embedding if "output.weight" in nbytes else 0)
    saved = head * (1 - _COMPUTED) - screen_bytes(config)
    share = saved / token if token else 0.0
    words = f"a token then reads {max(share, 0.0):.0%} less; 8 % is the least that is worth its memory"
    return HeadChoice(share >= _LEAST_SAVED, words)
