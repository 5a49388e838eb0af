"""Byte-level BPE engines of the `tokenizers` library, from a GGUF's arrays or a tokenizer.json."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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


def from_json(text: str, source: str) -> tuple[tokenizers.Tokenizer, list[dict[str, Any]]]:
    """The engine that a tokenizer.json describes, and its added tokens.

    Raises:
        ModelFileError: not a tokenizer.json.
        UnsupportedModelError: not a byte-level BPE, or control tokens that swallow the space around them.
    """
    from tokenizers import Tokenizer

    try:
        description = json.loads(text)
        model_type = description["model"]["type"]
        added = list(description.get("added_tokens") or [])
        pre_tokenizer = json.dumps(description.get("pre_tokenizer"))
        backend = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(f"{source} is not a tokenizer.json: {error}.") from error
    if model_type != "BPE" or '"ByteLevel"' not in pre_tokenizer:
        raise UnsupportedModelError(
            f"{source} is a {model_type} tokenizer; this version runs byte-level BPE."
        )
    for token in added:
        if token.get("special") and any(token.get(flag) for flag in ("lstrip", "rstrip", "single_word")):
            raise UnsupportedModelError(
                f"{source}: control token {token['content']!r} takes in the text around it (lstrip, rstrip, "
                "single_word); this version runs control tokens that stand for themselves."
            )
    backend.encode_special_tokens = True  # a control token's name in a text is text
    return backend, added
