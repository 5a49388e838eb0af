"""Text to token ids and back: byte-level BPE as Qwen2 uses it.

A control token's name (``<|im_end|>`` and its like) in a text is text: it becomes the control token only
with ``allow_special=True``. User-defined tokens (``<tool_call>``) are ordinary vocabulary that the model
writes itself, and are always found, as in transformers and llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from bitqwen.checkpoints.files import read_json
from bitqwen.checkpoints.tokenizer_data import CONTROL, UNUSED, USER_DEFINED, TokenizerData
from bitqwen.errors import ModelFileError, UsageError
from bitqwen.generation import bpe
from bitqwen.generation.byte_level import Utf8Stream, piece_to_bytes


class Tokenizer:
    """A model's tokenizer. Safe to use from several threads.

    Attributes:
        vocab_size: ids below it are tokens; the model's output rows from here on are padding.
        unused_ids: ids below ``vocab_size`` that stand for nothing.
        control: text of each control token -> id.
        eos_id: the id that the model names first as the end of a text, or ``None``.
        bos_id: the id that starts a text, or ``None``.
        pad_id: the id that fills batches, or ``None``.
        add_bos: whether a text starts with ``bos_id``.
        stop_ids: every id that ends a generation: end of turn, of document, and what the model's config
            lists.

    Raises:
        ModelFileError: merges that do not fit the tokens.
        UnsupportedModelError: an unknown pre-tokenizer.
    """

    def __init__(self, data: TokenizerData) -> None:
        of_type: dict[int, list[int]] = {CONTROL: [], USER_DEFINED: [], UNUSED: []}
        vocabulary: dict[str, int] = {}
        for token, (text, token_type) in enumerate(zip(data.tokens, data.token_types, strict=True)):
            if token_type in of_type:
                of_type[token_type].append(token)
                if token_type == UNUSED:
                    continue
            vocabulary.setdefault(text, token)
        if not vocabulary:
            raise ModelFileError("The file's tokenizer has no tokens.")
        self.vocab_size = max(vocabulary.values()) + 1
        self.unused_ids = tuple(token for token in of_type[UNUSED] if token < self.vocab_size)
        self.control = {data.tokens[token]: token for token in of_type[CONTROL]}
        self.eos_id = data.eos_id
        self.bos_id = data.bos_id
        self.pad_id = data.pad_id
        self.add_bos = data.add_bos and data.bos_id is not None
        self.stop_ids = frozenset(data.stop_ids)
        self._control_ids = frozenset(of_type[CONTROL])
        # Longest first: where one control token begins another, the longer one is meant.
        names = sorted(self.control, key=len, reverse=True)
        self._control_pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        user_defined = [data.tokens[token] for token in of_type[USER_DEFINED]]
        self._backend = bpe.from_arrays(vocabulary, data.merges, pre=data.pre, user_defined=user_defined)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """Builds it from a GGUF file's ``tokenizer.ggml.*`` metadata.

        Raises:
            ModelFileError: a key is missing, or its value contradicts another.
            UnsupportedModelError: not a byte-level BPE, or an unknown pre-tokenizer.
        """
        return cls(TokenizerData.from_gguf_metadata(metadata))

    @classmethod
    def from_tokenizer_json(cls, path: str | PathLike[str]) -> Tokenizer:
        """Builds it from a ``tokenizer.json``, and the configs that lie beside it.

        ``tokenizer_config.json`` and ``config.json`` name the special tokens, ``generation_config.json``
        further stop ids; each may be absent.

        Raises:
            ModelFileError: a file cannot be read.
            UnsupportedModelError: not a byte-level BPE, or an unknown pre-tokenizer.
        """
        file = Path(path)

        def beside(name: str) -> dict[str, Any]:
            other = file.with_name(name)
            return read_json(other) if other.exists() else {}

        return cls(
            TokenizerData.from_tokenizer_json(
                read_json(file),
                settings=beside("tokenizer_config.json"),
                generation=beside("generation_config.json"),
                config=beside("config.json"),
            )
        )

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
