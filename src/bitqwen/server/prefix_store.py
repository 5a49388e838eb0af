"""The prefix cache on disk, from one run of the server to the next.

A file is a line of JSON, the entries, the most recently used first, and the SHA-256 of all before it. An
entry is four numbers of four bytes (its length in tokens; an earlier entry that it begins like, or -1; the
pages that both share; the pages that follow), its tokens of four bytes each, and those pages as the engine
has them. All is little-endian.

The keys and values are believed as those of the model file are: what is checked is that they belong to this
model, this version, these settings and this instruction set, that no size lies, and that nothing was damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bitqwen import __version__, _native
from bitqwen.errors import BitqwenError, ResourceError
from bitqwen.files import atomic_file
from bitqwen.generation.session_cache import common_prefix

if TYPE_CHECKING:
    from bitqwen.engine import Model, Session
    from bitqwen.server.prefix_cache import PrefixCache

logger = logging.getLogger(__name__)

_HEAD = struct.Struct("<iiii")
_MAX_LINE = 4096
_MAX_ENTRIES = 1 << 16
_DIGEST = hashlib.sha256().digest_size
_SUFFIX = ".prefixes"


class _Unusable(Exception):  # noqa: N818 - nothing is wrong with the server
    """Why a file is not used."""


class PrefixStore:
    """Where the prefix cache of one model is kept.

    Args:
        folder: of the file; made if it is not there.
        model: the GGUF file; its content is hashed, which takes about a second for each gigabyte.
        kv: type of the KV cache.
    """

    def __init__(self, folder: Path, model: Path, kv: str) -> None:
        digest = hashlib.sha256()
        with model.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        self._facts = {
            "format": "bitqwen prefix cache 1",
            "version": __version__,
            "model": digest.hexdigest(),
            "kv": kv,
            "instructions": _native.isa_name(),
        }
        self.path = folder / f"{digest.hexdigest()[:16]}-{kv}{_SUFFIX}"

    def save(self, cache: PrefixCache, model: Model) -> None:
        """Writes the cache, whole or not at all; what goes wrong is logged."""
        sessions = cache.sessions()[-_MAX_ENTRIES:][::-1]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path) as file:
                os.fchmod(file.fileno(), 0o600)  # it holds what people asked
                _Writer(file).write(self._line(model, len(sessions)), sessions, model)
        except (OSError, BitqwenError) as error:
            logger.warning("the prefix cache could not be saved in %s: %s", self.path, error)
        else:
            logger.info({"event": "prefixes saved", "file": str(self.path), "entries": len(sessions)})

    def restore(self, cache: PrefixCache, model: Model) -> None:
        """Fills the cache from the file, as far as there is room; what cannot be used is left alone."""
        sessions: list[Session] = []
        try:
            with self.path.open("rb") as file:
                self._read(file, sessions, model)
        except FileNotFoundError:
            return
        except (OSError, _Unusable, BitqwenError) as error:
            for session in sessions:
                session.close()
            logger.warning("the saved prefix cache %s is not used: %s", self.path, error)
            return
        for session in reversed(sessions):
            cache.keep(session)
        logger.info({"event": "prefixes restored", "file": str(self.path), "entries": len(sessions)})

    def _line(self, model: Model, entries: int) -> bytes:
        facts = self._facts | {
            "page_positions": model.page_positions,
            "page_bytes": model.page_bytes,
            "entries": entries,
        }
        return json.dumps(facts).encode() + b"\n"

    def _read(self, file: BinaryIO, sessions: list[Session], model: Model) -> None:
        """Appends a session for each entry.

        Raises:
            _Unusable: says why.
        """
        reader = _Reader(file)
        entries = self._entries(reader.line(), model)
        for _ in range(entries):
            try:
                session = reader.entry(sessions, model)
            except ResourceError:  # the cache is smaller than it was; the rest was used longer ago
                reader.skip()
                break
            sessions.append(session)
        if not reader.sound():
            raise _Unusable("it is damaged.")

    def _entries(self, line: bytes, model: Model) -> int:
        """The number of entries, if the first line fits this server."""
        try:
            facts = json.loads(line)
        except (ValueError, RecursionError):
            facts = None
        if not isinstance(facts, dict) or facts.get("format") != self._facts["format"]:
            raise _Unusable("it is no prefix cache of this format.")
        entries = facts.get("entries")
        if type(entries) is not int or not 0 <= entries <= _MAX_ENTRIES:
            raise _Unusable("it says that it has an impossible number of entries.")
        expected = json.loads(self._line(model, entries))
        for name, value in expected.items():
            if facts.get(name) != value:
                raise _Unusable(f"it was made with {name} {facts.get(name)!r:.80}, and this is {value!r}.")
        return entries


class _Writer:
    """Bytes to a file, and their digest behind them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, line: bytes, sessions: Sequence[Session], model: Model) -> None:
        self._put(line)
        written: list[list[int]] = []
        for session in sessions:
            tokens = session.tokens
            like, shared = _most_alike(tokens, written, model.page_positions)
            pages = -(-len(tokens) // model.page_positions)
            self._put(_HEAD.pack(len(tokens), like, shared, pages - shared))
            self._put(struct.pack(f"<{len(tokens)}i", *tokens))
            for page in range(shared, pages):
                self._put(session.export_page(page))
            written.append(tokens)
        self._file.write(self._digest.digest())

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)


def _most_alike(tokens: list[int], others: Sequence[list[int]], page: int) -> tuple[int, int]:
    """The one of ``others`` that shares most whole pages with ``tokens``, and how many; or -1 and 0."""
    best, shared = -1, 0
    for i, other in enumerate(others):
        if other[: (shared + 1) * page] == tokens[: (shared + 1) * page]:
            pages = common_prefix(other, tokens) // page
            if pages > shared:
                best, shared = i, pages
    return best, shared


class _Reader:
    """A file's parts; each size is checked before anything of that size is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._left = os.fstat(file.fileno()).st_size - _DIGEST

    def line(self) -> bytes:
        line = self._file.readline(_MAX_LINE)
        self._digest.update(line)
        self._left -= len(line)
        return line

    def entry(self, sessions: Sequence[Session], model: Model) -> Session:
        """The next entry as a session.

        Raises:
            _Unusable: a size or a token that cannot be.
            ResourceError: the KV cache is full.
        """
        length, like, shared, pages = _HEAD.unpack(self._take(_HEAD.size))
        page = model.page_positions
        if not 0 < length <= model.context or shared + pages != -(-length // page) or min(shared, pages) < 0:
            raise _Unusable("it has an entry of an impossible size.")
        tokens = list(struct.unpack(f"<{length}i", self._take(4 * length)))
        if not all(0 <= token < model.vocab_size for token in tokens):
            raise _Unusable("it has a token that the model does not have.")
        session = self._beginning(sessions, like, tokens[: shared * page], model)
        try:
            for start in range(shared * page, length, page):
                session.import_page(tokens[start : start + page], self._take(model.page_bytes))
        except BaseException:
            session.close()
            raise
        return session

    def _beginning(self, sessions: Sequence[Session], like: int, tokens: list[int], model: Model) -> Session:
        if not tokens:
            return model.session()
        if not 0 <= like < len(sessions) or sessions[like].tokens[: len(tokens)] != tokens:
            raise _Unusable("it has an entry that begins like none before it.")
        session = sessions[like].fork()
        session.truncate(len(tokens))
        return session

    def skip(self) -> None:
        """Reads over the other entries."""
        while self._left > 0:
            self._take(min(self._left, 1 << 20))

    def sound(self) -> bool:
        """Whether all was read and is what was written."""
        return self._left == 0 and self._file.read(_DIGEST + 1) == self._digest.digest()

    def _take(self, size: int) -> bytes:
        if size > self._left:
            raise _Unusable("it is cut off.")
        data = self._file.read(size)
        if len(data) != size:
            raise _Unusable("it is cut off.")
        self._digest.update(data)
        self._left -= size
        return data
