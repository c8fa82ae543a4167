"""Sorted fixed-width keys on disk: how a list of millions of entries is looked up.

A column holds the distinct keys of one kind and width, sorted by their bytes, in two files:
``<kind>.head`` (the first 8 bytes as little-endian uint64 of the big-endian number, so that
numeric order is byte order) and ``<kind>.tail`` (the other bytes, as uint64 words likewise). Both
are memory-mapped: a look-up reads only the pages that it needs. What does not belong here: what a
key means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Keys = NDArray[np.uint8]

_SPILL_BYTES: Final = 64_000_000
"""Bytes of keys held in memory while a column is made; more go to buckets on disk."""
_DIGEST_ROWS: Final = 1_000_000


def keys_of(raw: bytes, width: int) -> Keys:
    """(n, width) uint8 of ``n`` keys stored back to back."""
    keys: Keys = np.frombuffer(raw, dtype=np.uint8).reshape(-1, width)
    return keys


def _words(keys: Keys) -> Words:
    """(n, width / 8) uint64 whose order is the order of the keys' bytes."""
    words: Words = np.ascontiguousarray(keys).view(">u8").astype(np.uint64)
    return words


class Column:
    """The distinct keys of one width, a multiple of 8 bytes, sorted."""

    def __init__(
        self, width: int, head: Words, tail: Words, origin: tuple[Path, str] | None = None
    ) -> None:
        """``head``: (n,) uint64. ``tail``: (n, width / 8 - 1) uint64.

        ``origin``: folder and kind of its files, if these are never written again.
        """
        self.width, self.head, self.tail, self.origin = width, head, tail, origin

    @classmethod
    def of(cls, keys: Keys) -> Column:
        """Sort (n, width) uint8 keys into a column in memory."""
        words = _sorted(_words(keys))
        return cls(keys.shape[1], np.ascontiguousarray(words[:, 0]), words[:, 1:])

    @classmethod
    def open(cls, folder: Path, kind: str, width: int) -> Column:
        """Map a column's files. Raises ``OSError`` if one is missing, ``ValueError`` if cut."""
        head, tail = map(_map, _files(folder, kind))
        return cls(width, head, tail.reshape(len(head), width // 8 - 1), (folder, kind))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of head and tail, if these are never written again; else none."""
        return _files(*self.origin) if self.origin else ()

    def __len__(self) -> int:
        return len(self.head)

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """(n,) bool: which of the (n, width) uint8 keys are in the column."""
        found = np.zeros(len(keys), dtype=np.bool_)
        if not len(keys) or not len(self):
            return found
        words = _words(keys)
        # In sorted order, neighbours are looked up in the same pages.
        order = np.argsort(words[:, 0])
        words = words[order]
        at = np.searchsorted(self.head, words[:, 0])
        left = np.flatnonzero(at < len(self))
        # Keys with the same head are neighbours; digests hardly ever share one.
        while len(left):
            left = left[self.head[at[left]] == words[left, 0]]
            same = (self.tail[at[left]] == words[left, 1:]).all(axis=1)
            found[order[left[same]]] = True
            left = left[~same]
            at[left] += 1
            left = left[at[left] < len(self)]
        return found

    def has_one(self, key: bytes) -> bool:
        """Whether one key is in the column, without the cost of arrays."""
        words = np.frombuffer(key, ">u8").astype(np.uint64)
        at = int(self.head.searchsorted(words[0]))
        while at < len(self) and self.head[at] == words[0]:
            if (self.tail[at] == words[1:]).all():
                return True
            at += 1
        return False

    def blocks(self, rows: int = _DIGEST_ROWS) -> Iterator[Keys]:
        """Yield the keys in order, as (at most ``rows``, width) uint8."""
        for start in range(0, len(self), rows):
            words = np.column_stack([self.head[start : start + rows], self.tail[start:][:rows]])
            yield words.astype(">u8").view(np.uint8).reshape(len(words), self.width)

    def without(self, other: Column) -> Column:
        """The keys that ``other`` does not have, in memory."""
        if self.origin is not None and self.origin == other.origin:
            return Column.of(np.empty((0, self.width), np.uint8))
        kept = [block[~other.has(block)] for block in self.blocks()]
        return Column.of(np.concatenate([np.empty((0, self.width), np.uint8), *kept]))


def _files(folder: Path, kind: str) -> tuple[Path, Path]:
    return folder / f"{kind}.head", folder / f"{kind}.tail"


def _map(path: Path) -> Words:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, np.uint64)
    # As a plain array: slicing `np.memmap` itself costs more at every step.
    mapped: Words = np.asarray(np.memmap(path, dtype="<u8", mode="r"))
    return mapped


def _sorted(words: Words) -> Words:
    """The distinct rows in the order of their bytes."""
    words = words[np.argsort(words[:, 0], kind="stable")]
    same = np.zeros(len(words) + 1, dtype=np.bool_)
    same[1:-1] = words[1:, 0] == words[:-1, 0]
    # Only rows that share their head with a neighbour can be out of order or repeated.
    tied = np.flatnonzero(same[1:] | same[:-1])
    if len(tied):
        group = words[tied]
        words[tied] = group[np.lexsort([group[:, i] for i in reversed(range(group.shape[1]))])]
        again = (words[1:] == words[:-1]).all(axis=1)
        words = words[np.concatenate([[True], ~again])]
    return words


class ColumnWriter:
    """Writes a column from keys in any order, in bounded memory.

    Keys beyond ``spill`` bytes are spread on disk by their first byte and sorted bucket by bucket.
    """

    def __init__(self, folder: Path, kind: str, width: int, spill: int = _SPILL_BYTES) -> None:
        self._folder, self._kind, self.width, self._spill_at = folder, kind, width, spill
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._spilled: set[int] = set()

    def add(self, raw: bytes) -> None:
        """Add one key, or several stored back to back."""
        self._waiting.append(raw)
        self._bytes += len(raw)
        if self._bytes >= self._spill_at:
            self._spill()

    def _bucket(self, number: int) -> Path:
        return self._folder / f"{self._kind}.{number:03d}"

    def _take(self) -> Keys:
        keys = keys_of(b"".join(self._waiting), self.width)
        self._waiting, self._bytes = [], 0
        return keys

    def _spill(self) -> None:
        keys = self._take()
        keys = keys[np.argsort(keys[:, 0], kind="stable")]
        stops = np.cumsum(np.bincount(keys[:, 0], minlength=256))
        for number, stop in enumerate(stops.tolist()):
            start = int(stops[number - 1]) if number else 0
            if stop > start:
                self._spilled.add(number)
                with self._bucket(number).open("ab") as stream:
                    stream.write(keys[start:stop].tobytes())

    def _parts(self) -> Iterator[Keys]:
        if not self._spilled:
            yield self._take()
            return
        self._spill()
        for number in sorted(self._spilled):
            path = self._bucket(number)
            yield keys_of(path.read_bytes(), self.width)
            path.unlink()

    def write(self) -> None:
        """Write the column of all added keys."""
        head_path, tail_path = _files(self._folder, self._kind)
        with (
            head_path.open("wb") as head,
            tail_path.open("wb") as tail,
        ):
            for keys in self._parts():
                words = _sorted(_words(keys)).astype("<u8")
                head.write(np.ascontiguousarray(words[:, 0]).tobytes())
                tail.write(np.ascontiguousarray(words[:, 1:]).tobytes())


def digest_of(columns: Sequence[tuple[str, Column]]) -> str:
    """SHA-256, in hexadecimal, of the keys of all columns and of nothing else."""
    digest = hashlib.sha256()
    for kind, column in columns:
        digest.update(f"{kind} {len(column)} ".encode())
        for block in column.blocks():
            digest.update(block.tobytes())
    return digest.hexdigest()


def hex_keys(column: Any, width: int) -> tuple[Keys, NDArray[np.int64]]:
    """The keys of an Arrow column of hexadecimal text (either case), and the rows of each.

    Returns (n, width) uint8 and (n,) int64. Rows that are null or hold other text have no key.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    sized = pc.fill_null(pc.equal(pc.binary_length(column), 2 * width), False)
    rows: NDArray[np.int64] = np.flatnonzero(sized.to_numpy(zero_copy_only=False))
    values = column.filter(sized).cast(pa.binary()).cast(pa.binary(2 * width))
    raw = np.frombuffer(values.buffers()[1] or b"", np.uint8)
    digits = raw[values.offset * 2 * width :][: len(values) * 2 * width].reshape(-1, 2 * width)
    nibbles = _NIBBLE[digits]
    sound = (nibbles < 16).all(axis=1)
    if not sound.all():
        nibbles, rows = nibbles[sound], rows[sound]
    keys: Keys = (nibbles[:, 0::2] << np.uint8(4)) | nibbles[:, 1::2]
    return keys, rows


_NIBBLE: Final = np.full(256, 255, dtype=np.uint8)
for _value, _digit in enumerate("0123456789abcdef"):
    _NIBBLE[[ord(_digit), ord(_digit.upper())]] = _value
