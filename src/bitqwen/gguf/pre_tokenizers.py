"""What ``tokenizer.ggml.pre`` names: how text is cut into words before byte pairs are merged."""

from __future__ import annotations

from typing import NamedTuple

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class PreTokenizer(NamedTuple):
    """A regular expression that finds words, and whether text is brought to Unicode's NFC first."""

    words: str
    nfc: bool


PRE_TOKENIZERS = {
    "qwen2": PreTokenizer(_QWEN2_WORDS, True),
    "deepseek-r1-qwen": PreTokenizer(_QWEN2_WORDS, False),
}
