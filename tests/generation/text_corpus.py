"""Strings that tokenizers get wrong: odd Unicode, code, white space, contractions, control tokens' names."""

from __future__ import annotations

import difflib
import email.message
import inspect
import json.decoder
import random
import textwrap

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>"]
USER_DEFINED = ["<tool_call>", "</tool_call>"]

_ASCII = "the The I'm we'LL DON'T it's 123 4567 3.14 != == -> :: // /* */ {} ;; <| |> \x00 \x7f \x1b[0m"
_LATIN = "naïve café Straße ﬁ Ǆ \u017f İ ١٢٣ ④ Ⅷ ½ é e\u0301 Å \u212b ﷺ \u200b \u00ad \ufeff \u2028"
_OTHER = "日本語 中文字 한국어 ไทย हिन्दी العربية עברית 🎉 👩\u200d👩\u200d👧 🇩🇪"
WORDS = [*_ASCII.split(" "), *_LATIN.split(" "), *_OTHER.split(" "), *CONTROL, *USER_DEFINED]
SPACES = [
    " ",
    "  ",
    "   ",
    "\n",
    "\r\n",
    "\n\n",
    "\t",
    " \n",
    "\n ",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\x0b",
    "\x85",
    "",
]


def strings(count: int, seed: int = 0) -> list[str]:
    """The same ``count`` strings for the same seed."""
    draw = random.Random(seed)
    modules = (json.decoder, textwrap, email.message, difflib)
    code = [line for module in modules for line in inspect.getsource(module).splitlines(keepends=True)]

    def character() -> str:
        while True:
            point = draw.randrange(draw.choice((0x80, 0x800, 0x10000, 0x110000)))
            if not 0xD800 <= point < 0xE000:
                return chr(point)

    def one() -> str:
        match draw.randrange(4):
            case 0:
                return "".join(character() for _ in range(draw.randrange(40)))
            case 1:
                return "".join(draw.choice(WORDS) + draw.choice(SPACES) for _ in range(draw.randrange(20)))
            case 2:
                start = draw.randrange(len(code))
                return "".join(code[start : start + draw.randrange(1, 8)])
            case _:
                return "".join(draw.choice([*SPACES, *WORDS, character()]) for _ in range(draw.randrange(30)))

    return [one() for _ in range(count)]
