"""The filter of a sorted run: what it cannot hold is known from 2 bytes a claim.

A Bloom filter in blocks of two words of 64 bits. The upper half of a key says which block, its
lower bits say which bits are set in either word, so that most look-ups cost one word. Blocks are in
the order of the keys: sorted keys are looked up by reading forwards, and written likewise. What
does not belong here: the claims.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from laion_assets.dedup.pages import Pages, PagesWriter
from laion_assets.files import FileWriter

_KEYS_PER_BLOCK: Final = 8
_BITS: Final = 3
"""Bits set for a key in either word. With eight keys a block, 0.2 % of other keys pass."""

_PAGE_WORDS: Final = 2048
"""Most pages are read, and larger ones cost less a byte."""
_BLOCKS: Final = _PAGE_WORDS // 2 - 1
"""Blocks in a page, behind the checksum and an unused word."""
_PAGES_AT_ONCE: Final = 1024


def marks(high: NDArray[np.uint64], word: int = 0) -> NDArray[np.uint64]:
    """(n,) uint64: the bits that are set in a word of their blocks if a filter holds the keys."""
    found = np.zeros(len(high), dtype=np.uint64)
    for bit in range(word * _BITS, (word + 1) * _BITS):
        found |= np.uint64(1) << ((high >> np.uint64(6 * bit)) & np.uint64(63))
    return found


def _page_count(room: int) -> int:
    # A block's number comes from 32 bits of the key.
    return min(1 + room // (_KEYS_PER_BLOCK * _BLOCKS), (1 << 32) // _BLOCKS)


def _blocks(high: NDArray[np.uint64], pages: int) -> NDArray[np.int64]:
    blocks = ((high >> np.uint64(32)) * np.uint64(pages * _BLOCKS)) >> np.uint64(32)
    return blocks.astype(np.int64)


class Filter:
    """A filter with ``room`` for so many keys, opened for reading."""

    def __init__(self, path: Path, room: int) -> None:
        self._pages = Pages(path, _page_count(room), _PAGE_WORDS)

    def close(self) -> None:
        self._pages.close()

    def forget(self) -> None:
        self._pages.forget()

    def passing(self, high: NDArray[np.uint64], marked: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Indices of the keys that may be held.

        ``high``: (n,), sorted; ``marked``: their :func:`marks`. Raises
        :class:`~laion_assets.dedup.pages.DamagedError`.
        """
        found = [np.zeros(0, dtype=np.int64)]
        for step in self._pages.in_steps(len(high)):
            block = _blocks(high[step], self._pages.count)
            page = block // _BLOCKS
            pages, _, place = self._pages.take(page)
            word, wanted = 2 + 2 * (block - page * _BLOCKS), marked[step]
            some = np.flatnonzero((pages[place, word] & wanted) == wanted)
            wanted = marks(high[step][some], 1)
            passed = (pages[place[some], word[some] + 1] & wanted) == wanted
            found.append(step.start + some[passed])
        return np.concatenate(found)


class FilterWriter(FileWriter):
    """Writes a filter, which is whole once the block ends without an error.

    ``room``: how many keys it is made for; more keys than that let more others pass.
    """

    def __init__(self, path: Path, room: int) -> None:
        super().__init__()
        self._pages = PagesWriter(path)
        self._count = self._left = _page_count(room)
        self._begun = np.zeros((0, 2), dtype=np.uint64)
        """The blocks from the first one on of the pages that are left."""

    def __enter__(self) -> Self:
        self._stack.enter_context(self._pages)
        return self

    def _finish(self) -> None:
        while self._left:
            self._flush(min(self._left, _PAGES_AT_ONCE))

    def add(self, high: NDArray[np.uint64]) -> None:
        """Add keys, (n,); all keys must come sorted."""
        if not len(high):
            return
        block = _blocks(high, self._count) - (self._count - self._left) * _BLOCKS
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        begun = np.zeros((int(block[-1]) + 1, 2), dtype=np.uint64)
        begun[: len(self._begun)] = self._begun
        for word in (0, 1):
            begun[block[starts], word] |= np.bitwise_or.reduceat(marks(high, word), starts)
        self._begun = begun
        # The last block may get more keys.
        self._flush((len(begun) - 1) // _BLOCKS)

    def _flush(self, pages: int) -> None:
        blocks = self._begun[: pages * _BLOCKS]
        written = np.zeros((pages, _BLOCKS + 1, 2), dtype="<u8")
        content = np.zeros((pages * _BLOCKS, 2), dtype="<u8")
        content[: len(blocks)] = blocks
        written[:, 1:] = content.reshape(pages, _BLOCKS, 2)
        self._pages.write(written.reshape(pages, _PAGE_WORDS))
        self._begun = self._begun[len(blocks) :]
        self._left -= pages
