"""Keys and values of prompts past, so that equal beginnings are computed once.

An entry is an idle session; its memory is shared with those that were forked from it. Entries are found by
their blocks of ``BLOCK`` tokens: a block's key hashes its tokens and the key before it, so that a key
stands for all tokens up to its block's end. What is found is compared token by token, so that the result
never rests on a hash. The distinct blocks of all entries are what the cache holds in memory, give or take
each entry's last page.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bitqwen.generation.session_cache import common_prefix

if TYPE_CHECKING:
    from bitqwen.engine import Session

BLOCK = 16


class _Entry:
    def __init__(self, session: Session, tokens: list[int], keys: list[int]) -> None:
        self.session = session
        self.tokens = tokens
        self.keys = keys


class PrefixCache:
    """Idle sessions by what they begin with; the least recently used one goes first. For one thread.

    Args:
        positions: tokens it may hold; 0 keeps nothing.
    """

    def __init__(self, positions: int) -> None:
        self._positions = positions
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # least recently used first
        self._blocks: dict[int, OrderedDict[int, None]] = {}  # key -> entries that hold the block
        self._next = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def positions(self) -> int:
        """Tokens held, those that entries share counted once; whole blocks only."""
        return len(self._blocks) * BLOCK

    def known(self, keys: Sequence[int]) -> int:
        """Tokens of a text that are held, at least; ``keys`` are its :func:`block_keys`."""
        blocks = next((i for i, key in enumerate(keys) if key not in self._blocks), len(keys))
        return blocks * BLOCK

    def fork(self, ids: Sequence[int]) -> Session | None:
        """A session of the longest beginning of ``ids`` that is known, at least one token short of all.

        The last id is left to be computed, because its logits are what the caller is after.
        """
        holders: OrderedDict[int, None] = OrderedDict()
        depth = 0
        for key in block_keys(ids):
            if key not in self._blocks:
                break
            holders = self._blocks[key]
            depth += BLOCK
        if not holders:
            return None
        # None of them has the whole next block, so that little is left to compare.
        rest = ids[depth : depth + BLOCK]
        found = max(
            holders, key=lambda name: common_prefix(self._entries[name].tokens[depth : depth + BLOCK], rest)
        )
        entry = self._entries[found]
        shared = min(common_prefix(entry.tokens, ids), len(ids) - 1)
        if shared == 0:
            return None
        self._entries.move_to_end(found)
        session = entry.session.fork()
        session.truncate(shared)
        return session

    def keep(self, session: Session) -> None:
        """Takes over an idle session; entries that it begins with are no longer needed."""
        tokens = session.tokens
        keys = list(block_keys(tokens))
        if not keys or len(keys) * BLOCK > self._positions:
            session.close()
            return
        for known in {name for key in keys for name in self._blocks.get(key, ())}:
            other = self._entries[known]
            if other.tokens == tokens[: len(other.tokens)]:
                self._remove(known)
            elif len(tokens) <= len(other.tokens) and tokens == other.tokens[: len(tokens)]:
                self._entries.move_to_end(known)
                session.close()
                return
        self._entries[self._next] = _Entry(session, tokens, keys)
        for key in keys:
            self._blocks.setdefault(key, OrderedDict())[self._next] = None
        self._next += 1
        while self.positions > self._positions:
            self.evict()

    def sessions(self) -> list[Session]:
        """All that is held, the least recently used first."""
        return [entry.session for entry in self._entries.values()]

    def evict(self) -> bool:
        """Drops the least recently used entry; whether there was one."""
        if not self._entries:
            return False
        self._remove(next(iter(self._entries)))
        return True

    def clear(self) -> None:
        """Drops everything."""
        while self.evict():
            pass

    def _remove(self, name: int) -> None:
        entry = self._entries.pop(name)
        for key in entry.keys:
            holders = self._blocks[key]
            del holders[name]
            if not holders:
                del self._blocks[key]
        entry.session.close()


def block_keys(ids: Sequence[int]) -> Iterator[int]:
    """The keys of all whole blocks of ``ids``."""
    key = 0
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        key = hash((key, *ids[start : start + BLOCK]))
        yield key


def shared_tokens(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that two texts begin with alike, in whole blocks, by their :func:`block_keys`."""
    low, high = 0, min(len(left), len(right))
    while low < high:  # a key stands for all blocks up to it
        middle = (low + high + 1) // 2
        if left[middle - 1] == right[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low * BLOCK
