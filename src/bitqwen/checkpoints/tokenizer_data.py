"""A byte-level BPE tokenizer as plain data: what a GGUF file stores of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bitqwen.errors import ModelFileError, UnsupportedModelError
from bitqwen.gguf import keys
from bitqwen.gguf.pre_tokenizers import PRE_TOKENIZERS

# tokenizer.ggml.token_type
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

_MAX_TOKENS = 1 << 20
# Ends of a turn and of a document. Files often name only one of them as a stop, and models write both.
_END_NAMES = ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class TokenizerData:
    """Tokens in GGUF's byte-level spelling, in the order of their ids.

    Attributes:
        tokens: one string an id; an id that stands for nothing is "[PAD<id>]".
        token_types: one of ``NORMAL``, ``CONTROL``, ``USER_DEFINED``, ``UNUSED`` an id.
        merges: "left right", most frequent first.
        pre: the pre-tokenizer's name in GGUF.
        eos_id, bos_id, pad_id: special ids, if the model names them.
        stop_ids: ids that end an answer: ``eos_id`` first, then those that the files list, then Qwen2's
            ends of a turn and of a document if they are control tokens.
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
            ModelFileError: tokens or merges are missing, or an id is none of theirs.
            UnsupportedModelError: not a byte-level BPE.
        """
        if metadata.get(keys.TOKENIZER_MODEL) != "gpt2":
            raise UnsupportedModelError(
                f"the file's tokenizer is {metadata.get(keys.TOKENIZER_MODEL)!r}; "
                "'gpt2' (byte-level BPE) is supported"
            )
        tokens = _strings(metadata.get(keys.TOKENS), keys.TOKENS)
        if not tokens:
            raise ModelFileError(f"{keys.TOKENS} is empty")
        types = metadata.get(keys.TOKEN_TYPES)
        if types is None:
            types = [NORMAL] * len(tokens)
        if not isinstance(types, list) or len(types) != len(tokens):
            raise ModelFileError(
                f"{keys.TOKEN_TYPES} does not hold one type for each of {len(tokens)} tokens"
            )

        def identifier(key: str) -> int | None:
            return _checked_id(metadata.get(key), len(tokens), key)

        return cls(
            tokens=tokens,
            token_types=types,
            merges=_strings(metadata.get(keys.MERGES), keys.MERGES),
            pre=metadata.get(keys.TOKENIZER_PRE) or "qwen2",  # older than the key: Qwen2 all the same
            eos_id=identifier(keys.EOS_ID),
            bos_id=identifier(keys.BOS_ID),
            pad_id=identifier(keys.PADDING_ID),
            stop_ids=_checked_ids([*stop_ids(metadata), *_ends(tokens, types)], len(tokens), "a stop id"),
            add_bos=bool(metadata.get(keys.ADD_BOS, False)),
        )

    @classmethod
    def from_tokenizer_json(
        cls,
        document: Mapping[str, Any],
        *,
        settings: Mapping[str, Any],
        generation: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> TokenizerData:
        """From Hugging Face's files.

        Args:
            document: tokenizer.json.
            settings: tokenizer_config.json, or empty.
            generation: generation_config.json, or empty; lists further stop ids.
            config: config.json, for special ids that no other file names.

        Raises:
            UnsupportedModelError: not a byte-level BPE, or words are cut in a way that bitqwen does not know.
            ModelFileError: the document is damaged, or an id is none of its tokens'.
        """
        vocabulary, merges, added = _parts(document)
        texts, types = _by_id(vocabulary, added)
        count = max(texts) + 1
        ids = {text: token for token, text in texts.items()}

        def named(key: str) -> int | None:
            """The id of a special token that is given by its text."""
            value = settings.get(key)
            text = value.get("content") if isinstance(value, Mapping) else value
            return ids.get(text) if isinstance(text, str) else None

        def listed(key: str) -> list[Any]:
            """Ids that are given as such: one or several, in generation_config.json or config.json."""
            values = generation.get(key)
            if values is None:
                values = config.get(key)
            return values if isinstance(values, list) else [values]

        def special(name: str) -> int | None:
            by_text = named(f"{name}_token")
            key = f"{name}_token_id"
            return by_text if by_text is not None else _checked_id(listed(key)[:1], count, key)

        eos = special("eos")
        tokens = [texts.get(token, f"[PAD{token}]") for token in range(count)]
        token_types = [types.get(token, UNUSED) for token in range(count)]
        stops = [eos, *listed("eos_token_id"), *_ends(tokens, token_types)]
        return cls(
            tokens=tokens,
            token_types=token_types,
            merges=merges,
            pre=_pre_tokenizer(document),
            eos_id=eos,
            bos_id=special("bos"),
            pad_id=special("pad"),
            stop_ids=_checked_ids(stops, count, "eos_token_id"),
            add_bos=settings.get("add_bos_token") is True,
        )


def stop_ids(metadata: Mapping[str, Any]) -> list[Any]:
    """Ids that end an answer as a GGUF file's metadata names them, unchecked."""
    ids = metadata.get(keys.BITQWEN_STOP_IDS)
    if not isinstance(ids, list):
        ids = [metadata.get(keys.EOS_ID), metadata.get(keys.EOT_ID)]
    return list(dict.fromkeys(token for token in ids if token is not None))


def _ends(tokens: list[str], types: list[int]) -> list[int]:
    """Ids of Qwen2's end tokens, where they are control tokens."""
    control = {tokens[token]: token for token, kind in enumerate(types) if kind == CONTROL}
    return [control[name] for name in _END_NAMES if name in control]


def _strings(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ModelFileError(f"{name} is missing or not a list of strings")
    return value


def _checked_id(value: Any, count: int, name: str) -> int | None:
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < count:
        raise ModelFileError(f"{name} is {value!r}; an id below {count}, the number of tokens, is allowed")
    return value


def _checked_ids(values: list[Any], count: int, name: str) -> tuple[int, ...]:
    checked = (_checked_id(value, count, name) for value in values)
    return tuple(dict.fromkeys(token for token in checked if token is not None))


def _damaged(what: str) -> ModelFileError:
    return ModelFileError(f"tokenizer.json is damaged: {what}", hint="Fetch the checkpoint again.")


def _parts(document: Mapping[str, Any]) -> tuple[dict[str, int], list[str], list[Mapping[str, Any]]]:
    """Vocabulary, merges and added tokens, of the types that they must have."""
    model = document.get("model")
    if not isinstance(model, Mapping):
        raise _damaged("it has no model")
    # Very old files do not name the type; only BPE has merges.
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte fallback" if model.get("byte_fallback") else model.get("type")
        raise UnsupportedModelError(f"tokenizer.json holds a {kind!r} model; byte-level BPE is supported")
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise _damaged("its model has no vocabulary")
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise _damaged("its model has no merges")
    joined = [" ".join(merge) if isinstance(merge, list) else merge for merge in merges]
    if not all(isinstance(merge, str) and merge.count(" ") == 1 for merge in joined):
        raise _damaged("a merge is not a pair")
    added = document.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(token, Mapping) and isinstance(token.get("content"), str) for token in added
    ):
        raise _damaged("an added token has no content")
    return vocabulary, joined, added


def _by_id(
    vocabulary: Mapping[str, int], added: list[Mapping[str, Any]]
) -> tuple[dict[int, str], dict[int, int]]:
    """Text and type of every id."""
    texts: dict[int, str] = {}
    types: dict[int, int] = {}
    entries: list[tuple[Any, str, int]] = [(token, text, NORMAL) for text, token in vocabulary.items()]
    entries += [(token.get("id"), token["content"], _added_type(token)) for token in added]
    for token, text, kind in entries:
        if type(token) is not int or not 0 <= token < _MAX_TOKENS:
            raise _damaged(f"token {text!r} has id {token!r}; ids from 0 to {_MAX_TOKENS - 1} are allowed")
        if texts.setdefault(token, text) != text:
            raise _damaged(f"tokens {texts[token]!r} and {text!r} have the same id {token}")
        types[token] = kind
    return texts, types


def _added_type(token: Mapping[str, Any]) -> int:
    """As llama.cpp's converter sees it: what looks like a control token is one, flagged or not."""
    text = token["content"]
    # The second spelling, with full-width bars, is DeepSeek's.
    looks_special = text.startswith(("<|", "<\uff5c")) and text.endswith(("|>", "\uff5c>"))
    return CONTROL if token.get("special") or looks_special else USER_DEFINED


def _pre_tokenizer(document: Mapping[str, Any]) -> str:
    """GGUF's name for the way that text is cut into words."""
    if "pre_tokenizer" not in document:
        return "qwen2"  # vocab.json and merges.txt do not say; they are Qwen2's
    steps = _steps(document["pre_tokenizer"], "pretokenizers")
    words = [_pattern(step) for step in steps if step.get("type") == "Split"]
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    normalizers = [step.get("type") for step in _steps(document.get("normalizer"), "normalizers")]
    if len(byte_level) == 1 and len(steps) == len(words) + 1 and not byte_level[0].get("add_prefix_space"):
        for name, known in PRE_TOKENIZERS.items():
            if words == [known.words] and normalizers == (["NFC"] if known.nfc else []):
                return name
    raise UnsupportedModelError(
        "tokenizer.json cuts text into words in a way that this version does not know; known: "
        + ", ".join(PRE_TOKENIZERS),
        hint="Qwen2.5's own checkpoints are known; this one has another tokenizer.",
    )


def _steps(value: Any, inner: str) -> list[Mapping[str, Any]]:
    """A step of tokenizer.json, or the steps of a sequence."""
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise _damaged("its normalizer or pre_tokenizer is not an object")
    steps = value.get(inner) if value.get("type") == "Sequence" else [value]
    if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
        raise _damaged("its normalizer or pre_tokenizer is not a sequence of objects")
    return steps


def _pattern(step: Mapping[str, Any]) -> Any:
    pattern = step.get("pattern")
    return pattern.get("Regex") if isinstance(pattern, Mapping) else None
