"""The byte-level BPE engine of the `tokenizers` library, built from plain arrays."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bitqwen.errors import ModelFileError, UnsupportedModelError
from bitqwen.gguf.pre_tokenizers import PRE_TOKENIZERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tokenizers


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # 150,000 new tuples would set off full collections that find nothing, a third of the load time.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def from_arrays(
    vocabulary: Mapping[str, int], merges: Sequence[str], *, pre: str, user_defined: Sequence[str]
) -> tokenizers.Tokenizer:
    """A byte-level BPE.

    Args:
        vocabulary: entry -> id, in the byte-level alphabet; control and user-defined tokens as they are.
        merges: "left right" in the order of their rank.
        pre: the pre-tokenizer's name, one of :data:`PRE_TOKENIZERS`.
        user_defined: entries to find in any text before BPE sees it.

    Raises:
        ModelFileError: a merge that does not fit the vocabulary.
        UnsupportedModelError: an unknown ``pre``.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if pre not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"The file's pre-tokenizer is {pre!r}; this version knows {', '.join(map(repr, PRE_TOKENIZERS))}."
        )
    words, nfc = PRE_TOKENIZERS[pre]
    with _no_garbage_collection():
        pairs = list(map(tuple, map(str.split, merges)))
        try:
            model = models.BPE(vocab=dict(vocabulary), merges=pairs)  # type: ignore[arg-type]
        except Exception as error:  # the library raises bare Exception
            raise ModelFileError(f"The tokenizer's merges do not fit its vocabulary: {error}.") from error
    backend = Tokenizer(model)
    if nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in user_defined])
    return backend
