"""A text cut into chunks, and a model's logits over one of them in slices.

As llama.cpp's perplexity does it: chunks of n tokens do not overlap, each starts from an empty context, and
the second half of each is scored, so that every scored token has at least n / 2 tokens before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from bitqwen.errors import UsageError
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.texts import text_sha256

DEFAULT_CONTEXT = 512
MIN_CONTEXT = 8
MAX_CONTEXT = 1 << 20

# Rows of logits held at once: 64 x 151,936 x 4 bytes are 39 MB a model.
SLICE_ROWS = 64


class ScoringSession(Protocol):
    """What measuring needs of :class:`bitqwen.engine.Session`."""

    def feed(
        self, ids: Sequence[int], *, logits: Literal["last", "all", "none"] = "last"
    ) -> npt.NDArray[np.float32] | None:
        """Appends ids and returns logits after them."""

    def close(self) -> None:
        """Ends the session."""


class ScoringModel(Protocol):
    """What measuring needs of :class:`bitqwen.engine.Model`."""

    @property
    def vocab_size(self) -> int:
        """Width of all logits."""

    def session(self) -> ScoringSession:
        """A new, empty sequence."""


@dataclass(frozen=True)
class Passage:
    """A text as a model reads it.

    Attributes:
        name: what the text is called, usually its domain: prose, code.
        sha256: of the text in UTF-8, hexadecimal.
        chunks: token ids, int64 [chunks, context].
        vocab_size: ids below it are tokens. Distributions are over these: what a model's output has
            beyond them is padding, which is never sampled and differs between models of one family.
    """

    name: str
    sha256: str
    chunks: npt.NDArray[np.int64]
    vocab_size: int

    @property
    def context(self) -> int:
        """Tokens of a chunk."""
        return int(self.chunks.shape[1])

    @property
    def first(self) -> int:
        """Position whose logits are scored first."""
        return first_scored(self.context)

    @property
    def rows(self) -> int:
        """Scored tokens of a chunk."""
        return scored_rows(self.context)

    def targets(self, chunk: int) -> npt.NDArray[np.int64]:
        """The tokens of a chunk that are scored, [rows]."""
        return self.chunks[chunk, self.first + 1 :]


def first_scored(context: int) -> int:
    """Position whose logits are scored first: the middle of the chunk."""
    return context // 2


def scored_rows(context: int) -> int:
    """Scored tokens of a chunk: those after the middle; after the last there is none to compare with."""
    return context - 1 - first_scored(context)


def passage(
    name: str, text: str, tokenizer: Tokenizer, *, context: int = DEFAULT_CONTEXT, chunks: int | None = None
) -> Passage:
    """Cuts a text into chunks.

    Where a model's texts begin with a bos token, each chunk's first token is replaced by it.

    Args:
        name: what the text is called.
        text: the text; names of control tokens in it are text.
        tokenizer: the model's.
        context: tokens of a chunk.
        chunks: use only the first ones; ``None`` for all.

    Raises:
        UsageError: the text is shorter than a chunk, or an argument is out of range.
    """
    if not MIN_CONTEXT <= context <= MAX_CONTEXT:
        raise UsageError(f"The context is {context} tokens; allowed: {MIN_CONTEXT} to {MAX_CONTEXT}.")
    if chunks is not None and chunks < 1:
        raise UsageError(f"The number of chunks is {chunks}; allowed: 1 or more.")
    ids = tokenizer.encode(text)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    if bos is not None:
        ids.insert(0, bos)
    count = len(ids) // context
    if count < 1:
        raise UsageError(
            f"The text {name!r} has {len(ids)} tokens; a chunk has {context}.",
            hint="Give a longer text or a smaller context.",
        )
    count = count if chunks is None else min(count, chunks)
    out = np.array(ids[: count * context], np.int64).reshape(count, context)
    if bos is not None:
        out[:, 0] = bos
    return Passage(name, text_sha256(text), out, tokenizer.vocab_size)


def logit_rows(
    model: ScoringModel, passage: Passage, chunk: int, *, slice_rows: int = SLICE_ROWS
) -> Iterator[npt.NDArray[np.float32]]:
    """The logits of each scored token of a chunk, float32 [vocab_size of the passage].

    A row is valid until the next one is asked for.

    Args:
        model: the model.
        passage: the text.
        chunk: which of its chunks.
        slice_rows: rows computed and held at once.

    Raises:
        UsageError: the model's vocabulary is smaller than the text's.
    """
    if model.vocab_size < passage.vocab_size:
        raise UsageError(
            f"The text {passage.name!r} was read with {passage.vocab_size} tokens; the model has "
            f"{model.vocab_size}.",
            hint="Compare models that share a tokenizer.",
        )
    ids = passage.chunks[chunk].tolist()
    session = model.session()
    try:
        session.feed(ids[: passage.first], logits="none")
        for start in range(passage.first, passage.context - 1, slice_rows):
            logits = session.feed(ids[start : min(start + slice_rows, passage.context - 1)], logits="all")
            assert logits is not None
            yield from logits[:, : passage.vocab_size]
            del logits  # before the next slice is made
    finally:
        session.close()
