"""Look up what previous versions of a segment's shards know of a URL: outcome, image, history.

Look-ups are by URL, not by row, because a row that leaves moves all that come after it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from cachetools import LRUCache

from laion_assets.download.outcomes import (
    OUTCOME_COLUMNS,
    SUCCESS,
    History,
    Outcome,
    histories_of,
)
from laion_assets.download.shard_files import (
    files_of,
    name_of,
    read_ledger,
    read_shard,
    shards_in,
)
from laion_assets.download.shards import read_stats, recorded_stats
from laion_assets.download.tars import ImageBytes

logger = logging.getLogger(__name__)

_OPEN_SHARDS: Final = 4
UNREADABLE: Final = (pa.ArrowException, OSError, ValueError, LookupError, TypeError)
"""Errors that reading a damaged shard raises."""
_ENTRY: Final = np.dtype([("hash", "<u8"), ("source", "<u2"), ("shard", "<u4"), ("row", "<u4")])


@dataclass(frozen=True)
class Known:
    """What a previous shard knows of a URL.

    ``options``: the digest of the options that the outcome was made with. ``encoded``: the stored
    image, if the outcome is one; None if it is lost.
    """

    outcome: Outcome
    history: History
    options: str
    encoded: bytes | None


@dataclass(frozen=True)
class _Shard:
    urls: list[str]
    keys: list[str]
    outcomes: list[Outcome]
    histories: list[History]
    options: str
    images: ImageBytes | None

    def image(self, row: int) -> bytes | None:
        """The stored image of a row that has one; None if the tar has lost it."""
        return (self.images.read(self.keys[row]) or None) if self.images else None


class _OpenShards(LRUCache[tuple[int, int], _Shard | None]):
    """(folder, shard) -> the shard, or None if it cannot be read. Closes what it drops."""

    def popitem(self) -> tuple[tuple[int, int], _Shard | None]:
        key, shard = super().popitem()
        if shard is not None and shard.images is not None:
            shard.images.close()
        return key, shard


class PreviousShards:
    """The shards of ``folders``; what the first folder knows takes precedence.

    Takes 18 bytes of memory a row, and a few shards' rows during look-ups. A shard that cannot be
    read is logged and knows nothing. Use as a context, by one thread at a time.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._open = _OpenShards(_OPEN_SHARDS)
        entries = [np.empty(0, _ENTRY)]
        for source, folder in enumerate(folders):
            for shard in shards_in(folder):
                try:
                    urls = _urls(folder, shard)
                except UNREADABLE as error:
                    _warn(folder, shard, error)
                    continue
                made = np.empty(len(urls), _ENTRY)
                made["hash"] = [_hash(url) for url in urls]
                made["source"], made["shard"], made["row"] = source, shard, np.arange(len(urls))
                entries.append(made)
        together = np.concatenate(entries)
        # A stable sort: among rows with the same URL, the first stays first.
        self._entries = together[np.argsort(together["hash"], kind="stable")]

    def __enter__(self) -> PreviousShards:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, urls: Sequence[str]) -> list[Known | None]:
        """What is known of each URL; None where nothing is."""
        hashes = np.array([_hash(url) for url in urls], dtype=np.uint64)
        places = np.searchsorted(self._entries["hash"], hashes)
        found: list[Known | None] = [None] * len(urls)
        of_shard: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for i, (place, digest) in enumerate(zip(places, hashes, strict=True)):
            while place < len(self._entries) and self._entries["hash"][place] == digest:
                entry = self._entries[place]
                shard = int(entry["source"]), int(entry["shard"])
                of_shard.setdefault(shard, []).append((i, int(entry["row"])))
                place += 1
        sources = [len(self._folders)] * len(urls)
        for (source, number), wanted in sorted(of_shard.items()):
            shard_ = self._read(source, number)
            if shard_ is None:
                continue
            for i, row in wanted:
                if shard_.urls[row] != urls[i]:
                    continue  # another URL with the same hash
                outcome, other = shard_.outcomes[row], found[i]
                # The first folder decides; of its rows, one with the image, wherever that is.
                if other is not None and (
                    outcome.status != SUCCESS
                    or other.encoded is not None
                    or (source > sources[i] and other.outcome.status != SUCCESS)
                ):
                    continue
                encoded = shard_.image(row) if outcome.status == SUCCESS else None
                if other is not None and encoded is None:
                    continue
                sources[i] = source
                found[i] = Known(outcome, shard_.histories[row], shard_.options, encoded)
        return found

    def _read(self, source: int, number: int) -> _Shard | None:
        if (source, number) not in self._open:
            folder = self._folders[source]
            try:
                self._open[source, number] = _read_shard(folder, number)
            except UNREADABLE as error:
                self._open[source, number] = None
                _warn(folder, number, error)
        return self._open[source, number]


def _warn(folder: Path, shard: int, error: Exception) -> None:
    logger.warning(
        f"shard {name_of(shard)} of {folder} cannot be read, its images are refetched: {error}"
    )


def _urls(folder: Path, shard: int) -> list[str]:
    """The URLs of a shard's rows; empty for a shard that was not finished."""
    if recorded_stats(folder, shard) is None:
        return []
    urls: list[str] = read_shard(files_of(folder, shard)[0], ["url"])["url"].to_pylist()
    return urls


def _read_shard(folder: Path, number: int) -> _Shard:
    tar, stats = files_of(folder, number)[0], recorded_stats(folder, number)
    whole = read_stats(folder, number) is not None
    if not whole:
        logger.warning(f"{tar} is missing or damaged: its images are refetched")
    rows = read_shard(tar, ["url", "key", *OUTCOME_COLUMNS])
    return _Shard(
        rows["url"].to_pylist(),
        rows["key"].to_pylist(),
        [Outcome(**row) for row in rows.select(list(OUTCOME_COLUMNS)).to_pylist()],
        histories_of(read_ledger(tar)),
        stats.options_digest if stats else "",
        ImageBytes(tar) if whole else None,
    )


def _hash(url: str) -> int:
    return int.from_bytes(hashlib.blake2b(url.encode(), digest_size=8).digest(), "little")
