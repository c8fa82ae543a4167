"""Entries of a list in memory or memory-mapped: which URLs, images and samples they name.

Entries are held as sorted columns of keys (:mod:`.keys`), so that millions of rows are looked up
in bounded memory. What does not belong here: what an entry may be (:mod:`.entry`), and where the
columns of a list's files are kept (:mod:`.compiled`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from laion_assets.removals.entry import WIDTHS, Key, host_key, key_of_line
from laion_assets.removals.keys import Column, Keys, digest_of, hex_keys, keys_of

_OF_URLS: Final = ("url-sha256", "url-md5", "host")
_OF_IMAGES: Final = ("sha256", "md5")
_ROWS_AT_ONCE: Final = 1 << 17
"""Rows looked up together. Sorted, so many find their neighbours in the same pages of the list,
and they take little memory."""

NO_ENTRIES: Final = hashlib.sha256(b"").hexdigest()
"""The digest of an empty list."""


@dataclass(frozen=True)
class Entries:
    """Entries of a list, by kind of key; several columns of a kind are looked up in turn."""

    columns: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)
    digest: str = NO_ENTRIES
    """Digest of the entries alone, not of their files, order or comments."""

    def __len__(self) -> int:
        return sum(len(column) for columns in self.columns.values() for column in columns)

    @cached_property
    def _kinds(self) -> frozenset[str]:
        """The kinds of keys that there are entries of."""
        return frozenset(kind for kind, columns in self.columns.items() if any(map(len, columns)))

    def _has_kind(self, *kinds: str) -> bool:
        return not self._kinds.isdisjoint(kinds)

    @property
    def names_urls(self) -> bool:
        """Whether any entry is of a URL or a host."""
        return self._has_kind(*_OF_URLS)

    @property
    def names_images(self) -> bool:
        """Whether any entry is of an image's hash."""
        return self._has_kind(*_OF_IMAGES)

    @property
    def names_samples(self) -> bool:
        """Whether any entry is of a ``SAMPLE_ID``."""
        return self._has_kind("sample-id")

    def heads(self, kind: str) -> NDArray[np.uint64]:
        """(n,) uint64, sorted and distinct: the first 8 bytes of the keys of one kind."""
        heads: NDArray[np.uint64] = np.unique(
            np.concatenate(
                [np.empty(0, np.uint64), *(column.head for column in self.columns.get(kind, ()))]
            )
        )
        return heads

    def has(self, key: Key) -> bool:
        """Whether the key is an entry."""
        return any(column.has_one(key.value) for column in self.columns.get(key.kind, ()))

    def _which(self, kind: str, keys: Keys) -> NDArray[np.bool_]:
        found = np.zeros(len(keys), dtype=np.bool_)
        for column in self.columns.get(kind, ()):
            found |= column.has(keys)
        return found

    def which_keys(self, kind: str, keys: Sequence[bytes]) -> NDArray[np.bool_]:
        """(n,) bool: which of many keys of one kind are entries."""
        return self._which(kind, keys_of(b"".join(keys), WIDTHS[kind]))

    def key_for_url(self, url: str) -> Key | None:
        """The key of the entry that names the URL, its host, or a parent domain of its host.

        ``url`` is in the form in which pairs hold URLs.
        """
        encoded = url.encode()
        if self._has_kind("url-sha256"):
            key = Key("url-sha256", hashlib.sha256(encoded).digest())
            if self.has(key):
                return key
        if self._has_kind("url-md5"):
            key = Key("url-md5", hashlib.md5(encoded, usedforsecurity=False).digest())
            if self.has(key):
                return key
        if self._has_kind("host"):
            for domain in _with_parents(_host(url)):
                key = Key("host", host_key(domain))
                if self.has(key):
                    return key
        return None

    def key_for_image(self, sha256: str | None, md5: str | None) -> Key | None:
        """The key of the entry that names one of the hashes, given in hexadecimal."""
        for kind, value in (("sha256", sha256), ("md5", md5)):
            if value and self._has_kind(kind) and self.has(key := Key(kind, bytes.fromhex(value))):
                return key
        return None

    def key_for_sample(self, sample_id: int) -> Key | None:
        """The key of the entry that names the ``SAMPLE_ID``."""
        key = Key("sample-id", sample_id.to_bytes(8, "big", signed=True))
        return key if self.has(key) else None

    def matches_url(self, url: str) -> bool:
        return self.key_for_url(url) is not None

    def matches_image(self, sha256: str, md5: str) -> bool:
        return self.key_for_image(sha256, md5) is not None

    def which_urls(self, urls: Sequence[str]) -> NDArray[np.bool_]:
        """(n,) bool: the rows whose URL is named, by itself or by its host."""
        blocks = [
            self._which_urls(urls[start : start + _ROWS_AT_ONCE])
            for start in range(0, len(urls), _ROWS_AT_ONCE)
        ]
        return np.concatenate([np.zeros(0, dtype=np.bool_), *blocks])

    def _which_urls(self, urls: Sequence[str]) -> NDArray[np.bool_]:
        found = np.zeros(len(urls), dtype=np.bool_)
        if self._has_kind("url-sha256"):
            digests = [hashlib.sha256(url.encode()).digest() for url in urls]
            found |= self.which_keys("url-sha256", digests)
        if self._has_kind("url-md5"):
            digests = [hashlib.md5(url.encode(), usedforsecurity=False).digest() for url in urls]
            found |= self.which_keys("url-md5", digests)
        if self._has_kind("host"):
            # By the authority as written, because each distinct one is parsed once.
            places = [authority_of(url) for url in urls]
            named = self._named_authorities(set(places))
            if named:
                found |= np.fromiter((place in named for place in places), np.bool_, len(places))
        return found

    def _named_authorities(self, authorities: Iterable[str]) -> set[str]:
        ordered, keys, owner = list(authorities), [], []
        for number, authority in enumerate(ordered):
            of_authority = host_keys(authority)
            keys += of_authority
            owner += [number] * len(of_authority)
        hits = np.flatnonzero(self.which_keys("host", keys))
        return {ordered[owner[hit]] for hit in hits}

    def which_images(self, sha256: Any, md5: Any) -> NDArray[np.bool_]:
        """(n,) bool: the rows in which one of two hashes is named.

        ``sha256`` and ``md5`` are Arrow columns of hexadecimal text.
        """
        found = np.zeros(len(sha256), dtype=np.bool_)
        for kind, column in (("sha256", sha256), ("md5", md5)):
            for start in range(0, len(column) if self._has_kind(kind) else 0, _ROWS_AT_ONCE):
                keys, rows = hex_keys(column[start : start + _ROWS_AT_ONCE], WIDTHS[kind])
                found[start + rows[self._which(kind, keys)]] = True
        return found

    def which_samples(self, sample_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) bool: the rows whose ``SAMPLE_ID`` is named."""
        if not self.names_samples:
            return np.zeros(len(sample_ids), dtype=np.bool_)
        return self._which("sample-id", keys_of(sample_ids.astype(">i8").tobytes(), 8))

    def which_rows(self, rows: Any) -> NDArray[np.bool_]:
        """(n,) bool: the rows of a subset whose id, URL or image is named.

        ``rows`` is an Arrow table or batch with the columns SAMPLE_ID, URL, sha256 and md5.
        """
        mask: NDArray[np.bool_] = self.which_samples(rows["SAMPLE_ID"].to_numpy())
        if self.names_urls:
            mask = mask | self.which_urls(rows["URL"].to_pylist())
        if self.names_images:
            mask = mask | self.which_images(rows["sha256"], rows["md5"])
        return mask

    def and_also(self, other: Entries) -> Entries:
        """The entries of both, without copying either's columns."""
        if not len(other):
            return self
        columns = {
            kind: self.columns.get(kind, ()) + other.columns.get(kind, ())
            for kind in WIDTHS
            if kind in self.columns or kind in other.columns
        }
        digest = hashlib.sha256(f"{self.digest} {other.digest}".encode()).hexdigest()
        return Entries(columns, digest)

    def without(self, other: Entries) -> Entries:
        """The entries that ``other`` does not have, in memory."""
        columns = {}
        for kind, own in self.columns.items():
            left = list(own)
            for theirs in other.columns.get(kind, ()):
                left = [column.without(theirs) for column in left]
            columns[kind] = tuple(left)
        return of_columns(columns)


def authority_of(url: str) -> str:
    """The part of a URL, as it is written, that has its host."""
    return url.partition("//")[2].partition("/")[0]


def host_keys(authority: str) -> list[bytes]:
    """The keys by which an entry may name an authority's host: its own and its parent domains'."""
    return [host_key(domain) for domain in _with_parents(_host(f"//{authority}"))]


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:  # it is not a URL, so no entry names its host
        return ""


def _with_parents(host: str) -> list[str]:
    labels = host.split(".")
    return [".".join(labels[i:]) for i in range(len(labels))]


def of_columns(columns: Mapping[str, tuple[Column, ...]]) -> Entries:
    """The entries of columns by kind of key, with their digest."""
    filled = {kind: own for kind, own in columns.items() if any(len(column) for column in own)}
    if not filled:
        return Entries()
    flat = [(kind, column) for kind in WIDTHS for column in filled.get(kind, ())]
    return Entries(filled, digest_of(flat))


def of_keys(keys: Iterable[Key]) -> Entries:
    """The entries with these keys, in memory."""
    raw: dict[str, list[bytes]] = {}
    for key in keys:
        raw.setdefault(key.kind, []).append(key.value)
    return of_columns(
        {
            kind: (Column.of(keys_of(b"".join(values), WIDTHS[kind])),)
            for kind, values in raw.items()
        }
    )


def parse(lines: Iterable[str], origin: str) -> Entries:
    """The entries of a list's lines, in memory.

    Raises :class:`.entry.ListError` naming ``origin``:line.
    """
    return of_keys(
        key
        for number, line in enumerate(lines, 1)
        if (key := key_of_line(line.encode(), origin, number)) is not None
    )
