"""Files of pages, each with a checksum that is compared whenever the page is read.

The checksum covers the page's place, too: a page of another file or from elsewhere in this one
counts as damaged. What does not belong here: what the pages hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from laion_assets.files import FileWriter

_WORD: Final = 8
_AT_ONCE: Final = 1 << 23
"""Bytes that :func:`in_steps` aims at."""

_GAP: Final = 1
"""Pages that are rather read unasked than skipped by a second read."""


class DamagedError(ValueError):
    """A file of the ledger does not hold what was written; the message says where."""


class PagesWriter(FileWriter):
    """Writes a file of pages, which is whole once the block ends without an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._count = path, 0

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(self._path.open("wb"))
        return self

    def _finish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def write(self, pages: NDArray[np.uint64]) -> None:
        """Append pages, (n, words) and contiguous; their first words become the checksums."""
        numbers = range(self._count, self._count + len(pages))
        pages[:, 0] = _checksums(pages, numbers, self._path.name)
        self._file.write(_bytes_of(pages))
        self._count += len(pages)


class Pages:
    """A file of ``count`` pages of ``words`` words, opened for reading.

    It stays readable when the file is deleted. Raises ``OSError`` if it cannot be opened and
    :class:`DamagedError` if it has another length.
    """

    def __init__(self, path: Path, count: int, words: int) -> None:
        self._name, self.count = path.name, count
        self._bytes = words * _WORD
        self._buffer = np.empty((0, words), dtype="<u8")
        self._file = path.open("rb", buffering=0)
        if os.fstat(self._file.fileno()).st_size != count * self._bytes:
            self.close()
            raise DamagedError(f"{self._name} does not have {count:,} pages")

    def close(self) -> None:
        self._file.close()

    def forget(self) -> None:
        """Give back the memory of what was read."""
        self._buffer = self._buffer[:0].copy()

    def in_steps(self, keys: int) -> Iterator[slice]:
        """Cut so many sorted keys into slices that need some megabytes of pages each."""
        pages = _AT_ONCE // self._bytes
        step = max(pages, keys * pages // max(1, self.count))
        for at in range(0, keys, step):
            yield slice(at, at + step)

    def take(
        self, numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Read pages: ``(pages, found, place)``.

        ``numbers``: (n,) int64, sorted, at least one. ``pages``: (m, words) uint64, each once, in
        the order of their numbers ``found``, (m,) int64; some may not have been asked for. The next
        call overwrites them. ``pages[place]`` are those asked for. Raises :class:`DamagedError`.
        """
        begins = np.zeros(1, dtype=np.int64)
        if numbers[-1] - numbers[0] > len(numbers):
            begins = np.flatnonzero(np.diff(numbers, prepend=-_GAP - 2) > _GAP + 1)
        first = numbers[begins]
        lengths = numbers[np.append(begins[1:], len(numbers)) - 1] - first + 1
        pages = self._read(first.tolist(), lengths.tolist())
        shift = first - (np.cumsum(lengths) - lengths)
        found = np.arange(len(pages)) + np.repeat(shift, lengths)
        wrong = found[_checksums(pages, found.tolist(), self._name) != pages[:, 0]]
        if len(wrong):
            raise DamagedError(f"page {wrong[0]:,} of {self._name} is not as it was written")
        asked = np.diff(np.append(begins, len(numbers)))
        return pages, found, numbers - np.repeat(shift, asked)

    def _read(self, first: list[int], lengths: list[int]) -> NDArray[np.uint64]:
        """Read stretches of pages, given by the first page and the number of each."""
        total = sum(lengths)
        if len(self._buffer) < total:
            self._buffer = np.empty((total, self._buffer.shape[1]), dtype="<u8")
        pages, file, at = self._buffer[:total], self._file.fileno(), 0
        # Small reads that wait for one another cost four times the CPU time; a long one costs more
        # if it is announced.
        for number, length in zip(first, lengths, strict=True) if len(first) > 1 else ():
            begin, size = number * self._bytes, length * self._bytes
            os.posix_fadvise(file, begin, size, os.POSIX_FADV_WILLNEED)
        content = _bytes_of(pages)
        for number, length in zip(first, lengths, strict=True):
            begin, size = number * self._bytes, length * self._bytes
            if os.preadv(file, [content[at : at + size]], begin) != size:
                raise DamagedError(f"{self._name} ends before its page {number + length:,}")
            at += size
        return pages


def _bytes_of(pages: NDArray[np.uint64]) -> memoryview:
    return pages.view(np.uint8).reshape(-1).data


def _checksums(pages: NDArray[np.uint64], numbers: Iterable[int], name: str) -> NDArray[np.uint64]:
    """(n,): CRC-32 of each page but its first word, begun with the file's name and its number."""
    content, salt = _bytes_of(pages), isal_zlib.crc32(name.encode())
    size = pages.shape[1] * _WORD
    return np.fromiter(
        (
            isal_zlib.crc32(content[begin + _WORD : begin + size], (salt + number) & 0xFFFFFFFF)
            for begin, number in zip(range(0, len(content), size), numbers, strict=True)
        ),
        dtype=np.uint64,
        count=len(pages),
    )
