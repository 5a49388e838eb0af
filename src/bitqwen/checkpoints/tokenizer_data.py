"""A byte-level BPE tokenizer as plain data: what a GGUF file stores of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bitqwen.errors import ModelFileError, UnsupportedModelError
from bitqwen.gguf import keys

# tokenizer.ggml.token_type
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_MAX_TOKENS = 1 << 22


@dataclass(frozen=True)
class TokenizerData:
    """Tokens in GGUF's byte-level spelling, in the order of their ids.

    Attributes:
        tokens: one string an id.
        token_types: one of ``NORMAL``, ``CONTROL``, ``USER_DEFINED``, ``UNUSED`` an id.
        merges: "left right", most frequent first.
        pre: the pre-tokenizer's name in GGUF.
        eos_id, bos_id, pad_id: special ids, if the model names them.
        stop_ids: ids that end an answer, ``eos_id`` among them.
        add_bos: whether a prompt begins with ``bos_id``.
    """

    tokens: list[str]
    token_types: list[int]
    merges: list[str]
    pre: str = "qwen2"
    eos_id: int | None = None
    bos_id: int | None = None
    pad_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    add_bos: bool = False

    def padded(self, vocab_size: int) -> TokenizerData:
        """The same for an embedding of ``vocab_size`` rows: the rest are unused tokens.

        Raises:
            ModelFileError: the tokenizer has more tokens than the embedding has rows.
        """
        missing = vocab_size - len(self.tokens)
        if missing < 0:
            raise ModelFileError(
                f"the tokenizer has {len(self.tokens)} tokens, the embedding only {vocab_size} rows",
                hint="Check that tokenizer.json belongs to these weights.",
            )
        fill = [f"[PAD{token}]" for token in range(len(self.tokens), vocab_size)]
        return replace(self, tokens=self.tokens + fill, token_types=self.token_types + [UNUSED] * missing)

    def to_gguf_metadata(self) -> dict[str, Any]:
        """The ``tokenizer.ggml.*`` keys."""
        metadata: dict[str, Any] = {
            keys.TOKENIZER_MODEL: "gpt2",
            keys.TOKENIZER_PRE: self.pre,
            keys.TOKENS: self.tokens,
            keys.TOKEN_TYPES: self.token_types,
            keys.MERGES: self.merges,
            keys.ADD_BOS: self.add_bos,
        }
        named = {keys.EOS_ID: self.eos_id, keys.BOS_ID: self.bos_id, keys.PADDING_ID: self.pad_id}
        metadata.update({key: token for key, token in named.items() if token is not None})
        other = [token for token in self.stop_ids if token != self.eos_id]
        if other:
            metadata[keys.EOT_ID] = other[0]
        if self.stop_ids:
            metadata[keys.BITQWEN_STOP_IDS] = list(self.stop_ids)
        return metadata

    @classmethod
    def from_gguf_metadata(cls, metadata: Mapping[str, Any]) -> TokenizerData:
        """From a GGUF file's metadata.

        Raises:
            ModelFileError: tokens or merges are missing.
            UnsupportedModelError: not a byte-level BPE.
        """
        if metadata.get(keys.TOKENIZER_MODEL) != "gpt2":
            raise UnsupportedModelError(
                f"the file's tokenizer is {metadata.get(keys.TOKENIZER_MODEL)!r}; "
                "'gpt2' (byte-level BPE) is supported"
            )
        tokens = metadata.get(keys.TOKENS)
        merges = metadata.get(keys.MERGES)
        if not tokens or merges is None:
            raise ModelFileError("the file has no tokenizer: its tokens or merges are missing")
        types = metadata.get(keys.TOKEN_TYPES) or [NORMAL] * len(tokens)
        eos = metadata.get(keys.EOS_ID)
        stops = metadata.get(keys.BITQWEN_STOP_IDS) or [eos, metadata.get(keys.EOT_ID)]
        return cls(
            tokens=list(tokens),
            token_types=list(types),
            merges=list(merges),
            pre=metadata.get(keys.TOKENIZER_PRE) or "qwen2",
            eos_id=eos,
            bos_id=metadata.get(keys.BOS_ID),
            pad_id=metadata.get(keys.PADDING_ID),
            stop_ids=tuple(dict.fromkeys(token for token in stops if token is not None)),
            add_bos=bool(metadata.get(keys.ADD_BOS, False)),
        )


def from_tokenizer_json(
    document: Mapping[str, Any], settings: Mapping[str, Any], generation: Mapping[str, Any]
) -> TokenizerData:
    """From Hugging Face's tokenizer.json, tokenizer_config.json and generation_config.json.

    Raises:
        UnsupportedModelError: not a byte-level BPE.
        ModelFileError: the vocabulary has no tokens, or ids out of bounds.
    """
    model = document.get("model") or {}
    if model.get("type", "BPE") != "BPE" or "vocab" not in model:
        raise UnsupportedModelError(f"tokenizer.json holds a {model.get('type')!r} model; 'BPE' is supported")
    ids: dict[int, str] = {token: text for text, token in model["vocab"].items()}
    added = document.get("added_tokens") or []
    types = dict.fromkeys(ids, NORMAL)
    for token in added:
        ids[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    if not ids or min(ids) < 0 or max(ids) >= _MAX_TOKENS:
        raise ModelFileError("tokenizer.json has no tokens, or token ids out of bounds")
    count = max(ids) + 1
    by_text = {text: token for token, text in ids.items()}

    def named(value: Any) -> int | None:
        text = value.get("content") if isinstance(value, Mapping) else value
        return by_text.get(text) if isinstance(text, str) else None

    eos = named(settings.get("eos_token"))
    listed = generation.get("eos_token_id")
    stops = [eos, *(listed if isinstance(listed, list) else [listed])]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
    return TokenizerData(
        tokens=[ids.get(token, f"[PAD{token}]") for token in range(count)],
        token_types=[types.get(token, UNUSED) for token in range(count)],
        merges=merges,
        eos_id=eos,
        bos_id=generation.get("bos_token_id")
        if named(settings.get("bos_token")) is None
        else named(settings["bos_token"]),
        pad_id=named(settings.get("pad_token")),
        stop_ids=tuple(dict.fromkeys(token for token in stops if isinstance(token, int))),
        add_bos=bool(settings.get("add_bos_token", False)),
    )
