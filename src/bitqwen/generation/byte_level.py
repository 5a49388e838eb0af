"""Byte-level BPE's alphabet: the 256 bytes as 256 printable characters, and text rebuilt from bytes."""

from __future__ import annotations

import codecs


def _alphabet() -> dict[int, str]:
    # GPT-2's rule: printable Latin-1 stands for itself; the others move up, in order, to 256 and beyond.
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    moved = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(moved)}


BYTE_TO_CHARACTER = _alphabet()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def piece_to_bytes(piece: str) -> bytes:
    """The bytes that a vocabulary entry stands for.

    An entry with a character outside the alphabet was added as plain text and stands for itself.
    """
    try:
        return bytes([CHARACTER_TO_BYTE[character] for character in piece])
    except KeyError:
        return piece.encode("utf-8", "replace")


class Utf8Stream:
    """Bytes in, whole characters out.

    The text of all calls together equals ``b"".join(chunks).decode("utf-8", "replace")``: a character
    whose bytes are still coming is held back, and only bytes that can no longer become one turn into
    U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """The characters that ``data`` completes."""
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What was held back: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)
