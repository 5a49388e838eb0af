"""Text to token ids and back: byte-level BPE as Qwen2 uses it.

A control token's name (``<|im_end|>`` and its like) in a text is text: it becomes the control token only
with ``allow_special=True``. User-defined tokens (``<tool_call>``) are ordinary vocabulary that the model
writes itself, and are always found, as in transformers and llama.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitqwen.errors import ModelFileError, UnsupportedModelError, UsageError
from bitqwen.generation import bpe
from bitqwen.generation.byte_level import Utf8Stream, piece_to_bytes

if TYPE_CHECKING:
    import tokenizers

# Ends of a turn and of a document. A file often names only one of them, and a model that then writes
# the other would never stop.
_END_NAMES = ("<|endoftext|>", "<|im_end|>")


class TokenType(IntEnum):
    """The values of ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SpecialIds:
    """Ids that a model gives a meaning to; ``None`` where it names none."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    stop: frozenset[int] = frozenset()
    add_bos: bool = False


class Tokenizer:
    """A model's tokenizer. Safe to use from several threads.

    Attributes:
        vocab_size: ids below it are tokens; the model's output rows from here on are padding.
        control: text of each control token -> id.
        special: bos, eos and pad ids, the ids that end a generation, whether a text starts with bos.
        unused_ids: ids below ``vocab_size`` that stand for nothing.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        vocab_size: int,
        control: Mapping[str, int],
        special: SpecialIds,
        unused_ids: Sequence[int] = (),
    ) -> None:
        self.vocab_size = vocab_size
        self.control = dict(control)
        self.unused_ids = tuple(unused_ids)
        ends = {self.control[name] for name in _END_NAMES if name in self.control}
        named = {token for token in (special.eos, *special.stop, *ends) if token is not None}
        self.special = SpecialIds(special.bos, special.eos, special.pad, frozenset(named), special.add_bos)
        self._backend = backend
        self._control_ids = frozenset(self.control.values())
        # Longest first: where one control token begins another, the longer one is meant.
        names = sorted(self.control, key=len, reverse=True)
        self._control_pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Builds it from a GGUF file's ``tokenizer.ggml.*`` metadata.

        Raises:
            ModelFileError: a key is missing, or its value contradicts another.
            UnsupportedModelError: not a byte-level BPE, or an unknown pre-tokenizer.
        """
        keys = _GgmlKeys(metadata)
        kind = keys.required("model")
        if kind != "gpt2":
            raise UnsupportedModelError(
                f"The file's tokenizer is {kind!r}; this version runs 'gpt2' (byte-level BPE)."
            )
        tokens: Sequence[str] = keys.required("tokens")
        types: Sequence[int] | None = keys.optional("token_type")
        if types is None:
            types = [TokenType.NORMAL] * len(tokens)
        if len(types) != len(tokens):
            raise ModelFileError(
                f"The file's tokenizer has {len(tokens)} tokens but {len(types)} token types."
            )
        # Qwen2 files from before the key existed do not name their pre-tokenizer.
        pre = keys.optional("pre") or (
            "qwen2" if metadata.get("general.architecture") == "qwen2" else "default"
        )

        vocabulary: dict[str, int] = {}
        by_type: dict[int, list[int]] = {}
        for token, (text, token_type) in enumerate(zip(tokens, types, strict=True)):
            if token_type != TokenType.NORMAL:
                by_type.setdefault(token_type, []).append(token)
                if token_type == TokenType.UNUSED:
                    continue
            vocabulary.setdefault(text, token)
        if not vocabulary:
            raise ModelFileError("The file's tokenizer has no tokens.")
        vocab_size = max(vocabulary.values()) + 1
        user_defined = [tokens[token] for token in by_type.get(TokenType.USER_DEFINED, [])]
        backend = bpe.from_arrays(vocabulary, keys.required("merges"), pre=pre, user_defined=user_defined)
        stop = [keys.token_id(name, len(tokens)) for name in ("eot_token_id", "eom_token_id")]
        return cls(
            backend,
            vocab_size=vocab_size,
            control={tokens[token]: token for token in by_type.get(TokenType.CONTROL, [])},
            special=SpecialIds(
                bos=keys.token_id("bos_token_id", len(tokens)),
                eos=keys.token_id("eos_token_id", len(tokens)),
                pad=keys.token_id("padding_token_id", len(tokens)),
                stop=frozenset(token for token in stop if token is not None),
                add_bos=bool(keys.optional("add_bos_token")),
            ),
            unused_ids=[token for token in by_type.get(TokenType.UNUSED, []) if token < vocab_size],
        )

    @classmethod
    def from_tokenizer_json(cls, path: str | PathLike[str]) -> Tokenizer:
        """Builds it from a ``tokenizer.json``, and the configs that lie beside it.

        ``tokenizer_config.json`` names the special tokens, ``generation_config.json`` further stop ids;
        either may be absent.

        Raises:
            ModelFileError: a file cannot be read.
            UnsupportedModelError: not a byte-level BPE.
        """
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"Cannot read {file}: {error}.") from error
        backend, added = bpe.from_json(text, str(file))
        config = _read_json(file.with_name("tokenizer_config.json"))
        stop = _read_json(file.with_name("generation_config.json")).get("eos_token_id", [])

        def id_of(key: str) -> int | None:
            value = config.get(key)
            name = value.get("content") if isinstance(value, dict) else value
            return backend.token_to_id(name) if isinstance(name, str) else None

        return cls(
            backend,
            vocab_size=max(backend.get_vocab().values()) + 1,
            control={token["content"]: token["id"] for token in added if token.get("special")},
            special=SpecialIds(
                bos=id_of("bos_token"),
                eos=id_of("eos_token"),
                pad=id_of("pad_token"),
                stop=frozenset(stop if isinstance(stop, list) else [stop]),
                add_bos=bool(config.get("add_bos_token")),
            ),
        )

    @property
    def bos_id(self) -> int | None:
        """The id that starts a text, if the model names one."""
        return self.special.bos

    @property
    def eos_id(self) -> int | None:
        """The id that the model names first as the end of a text."""
        return self.special.eos

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every id that ends a generation: end of turn, of document, and what the model's config lists."""
        return self.special.stop

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: any text; it is brought to Unicode's NFC first, as the model's training data was.
            allow_special: read control tokens' names as control tokens, not as text. For prompts whose
                every part you wrote yourself.

        Raises:
            UsageError: the text holds lone surrogates, which no UTF-8 can express.
        """
        if not allow_special or self._control_pattern is None:
            return self._encode_text(text)
        ids: list[int] = []
        # A split by a pattern with one group alternates text, name, text, ...
        for i, part in enumerate(self._control_pattern.split(text)):
            if i % 2:
                ids.append(self.control[part])
            elif part:
                ids += self._encode_text(part)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise UsageError(
                "The text is not valid Unicode: it holds lone surrogates.",
                hint="Decode your input as UTF-8 with errors='replace'.",
            ) from error

    def token_bytes(self, token: int) -> bytes:
        """The bytes that ``token`` stands for; nothing for padding."""
        piece = self._backend.id_to_token(token) if token >= 0 else None
        if piece is None:
            return b""
        return piece.encode() if token in self._control_ids else piece_to_bytes(piece)

    def is_control(self, token: int) -> bool:
        """Whether ``token`` is a control token."""
        return token in self._control_ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            skip_special: leave control tokens out.
        """
        kept = (token for token in ids if not (skip_special and token in self._control_ids))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def stream_decoder(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for tokens that come one at a time."""
        return StreamDecoder(self, skip_special=skip_special)


class StreamDecoder:
    """Tokens in, whole characters out; the pieces together are :meth:`Tokenizer.decode` of all tokens."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._stream = Utf8Stream()

    def feed(self, token: int) -> str:
        """The characters that ``token`` completes; empty while one is unfinished."""
        if self._skip_special and self._tokenizer.is_control(token):
            return ""
        return self._stream.feed(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What was held back: U+FFFD for an unfinished character, else nothing."""
        return self._stream.finish()


class _GgmlKeys:
    """Checked access to ``tokenizer.ggml.*``."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def optional(self, name: str) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{name}")

    def required(self, name: str) -> Any:
        value = self.optional(name)
        if value is None:
            raise ModelFileError(
                f"The file has no tokenizer.ggml.{name}.",
                hint="Convert the model again: the file lacks its tokenizer.",
            )
        return value

    def token_id(self, name: str, tokens: int) -> int | None:
        value = self.optional(name)
        if value is None:
            return None
        if not 0 <= value < tokens:
            raise ModelFileError(
                f"The file's tokenizer.ggml.{name} is {value}; it has tokens 0 to {tokens - 1}."
            )
        return int(value)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelFileError(f"Cannot read {file}: {error}.") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{file} is not a JSON object.")
    return value
