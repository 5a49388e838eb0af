"""Texts to measure with, and the register of those that no model here may be calibrated on.

A quantiser that has seen a text does better on it than on any other, so what is reported must come from
texts that calibration never saw. Two small ones are packaged, prose and code, written for bitqwen and
published nowhere else: no model can know them by heart. Whoever adds calibration text checks it with
:func:`held_out_in`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bitqwen.errors import ModelFileError, UsageError

_FOLDER = Path(__file__).with_name("held_out")
_MAX_TEXT_BYTES = 256 << 20

# As many words in a row, equal but for case and punctuation, are no coincidence.
SHARED_WORDS = 13


@dataclass(frozen=True)
class HeldOutText:
    """A text that results are reported on.

    Attributes:
        name: what it is called; for a packaged text also its domain.
        sha256: of the text in UTF-8, hexadecimal.
        licence: under which it may be passed on.
        packaged: whether it comes with bitqwen, as ``held_out/NAME.txt``.
    """

    name: str
    sha256: str
    licence: str
    packaged: bool = False


HELD_OUT = (
    HeldOutText(
        "prose", "3dfa6624775ec237513b1502b607e1f68d8da88d43c6c0f1155ca918ca5cf605", "CC0-1.0", packaged=True
    ),
    HeldOutText(
        "code", "c2b3c1b2a28019354133fe19ae29aaef6dec1ee3eaea482f6653bc82acce0e5b", "CC0-1.0", packaged=True
    ),
    HeldOutText(
        "wikitext-2-valid", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8", "CC-BY-SA-3.0"
    ),
)


def text_sha256(text: str) -> str:
    """SHA-256 of a text in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def packaged_names() -> list[str]:
    """Names of the texts that come with bitqwen; these are measured where no others are given."""
    return [text.name for text in HELD_OUT if text.packaged]


def packaged_text(name: str) -> str:
    """A text that comes with bitqwen.

    Raises:
        UsageError: there is none of this name.
        ModelFileError: it is not as it was packaged.
    """
    for text in HELD_OUT:
        if text.packaged and text.name == name:
            found = read_text(_FOLDER / f"{name}.txt")
            if text_sha256(found) != text.sha256:
                raise ModelFileError(
                    f"The packaged text {name!r} is not as it should be.", hint="Install bitqwen again."
                )
            return found
    raise UsageError(
        f"There is no packaged text {name!r}; there are: {', '.join(packaged_names())}.",
        hint="A text of your own is given as NAME=PATH.",
    )


def load_texts(choices: Iterable[str]) -> dict[str, str]:
    """Texts by name, in the order given.

    Args:
        choices: each the name of a packaged text, or NAME=PATH of a text file in UTF-8.

    Raises:
        UsageError: a name is given twice, empty, or unknown.
        ModelFileError: a file cannot be read.
    """
    texts: dict[str, str] = {}
    for choice in choices:
        name, given, path = choice.partition("=")
        name = name.strip()
        if not name or not name.isprintable() or name in texts:
            raise UsageError(
                f"The text {choice!r} has {'a name that was given before' if name in texts else 'no name'}.",
                hint="Texts are given as NAME=PATH, each with a name of its own.",
            )
        texts[name] = read_text(Path(path).expanduser()) if given else packaged_text(name)
    return texts


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        ModelFileError: missing, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"Cannot read {path}: {error.strerror}.") from error
    if len(data) > _MAX_TEXT_BYTES:
        raise ModelFileError(f"{path} is larger than {_MAX_TEXT_BYTES >> 20} MB.", hint="Give a part of it.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not UTF-8 text: {error}.") from error


def held_out_in(text: str) -> list[str]:
    """Names of the held-out texts that a text is, or shares a passage with.

    A text that is not packaged is known by its SHA-256 alone, so only as a whole.

    Args:
        text: what somebody would calibrate on.
    """
    digest = text_sha256(text)
    found = [each.name for each in HELD_OUT if each.sha256 == digest]
    shingles = _shingles(text)
    found += [
        name
        for name in packaged_names()
        if name not in found and not shingles.isdisjoint(_shingles(packaged_text(name)))
    ]
    return found


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}
