"""What earlier versions of a segment's shards know of a URL: its outcome, its image, its history.

Found by the URL and not by the row, because a row that leaves moves all that come after it.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.download.outcomes import (
    OUTCOME_COLUMNS,
    SUCCESS,
    History,
    Outcome,
    histories_of,
)
from laion_assets.download.shards import files_of, name_of, read_stats, shards_in
from laion_assets.download.tars import ImageBytes

logger = logging.getLogger(__name__)

_OPEN: Final = 4
UNREADABLE: Final = (pa.ArrowException, OSError, ValueError, LookupError, TypeError)
"""What reading a damaged shard raises."""
_ENTRY: Final = np.dtype([("hash", "<u8"), ("source", "<u2"), ("shard", "<u4"), ("row", "<u4")])


@dataclass(frozen=True)
class Known:
    """``options``: the digest of the options that the outcome was made with."""

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
    images: ImageBytes


class Earlier:
    """The shards of ``folders``; what the first of them knows goes before the others.

    Takes 18 bytes of memory a row, and a few shards' rows while it is read. A shard that cannot be
    read is told of in the log and knows nothing. Use as a context; not for several threads at once.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._open: OrderedDict[tuple[int, int], _Shard | None] = OrderedDict()
        entries = [np.empty(0, _ENTRY)]
        for source, folder in enumerate(folders):
            for shard in shards_in(folder):
                try:
                    urls = _urls(folder, shard)
                except UNREADABLE as error:
                    self._tell(folder, shard, error)
                    continue
                made = np.empty(len(urls), _ENTRY)
                made["hash"] = [_hash(url) for url in urls]
                made["source"], made["shard"], made["row"] = source, shard, np.arange(len(urls))
                entries.append(made)
        together = np.concatenate(entries)
        # Stable: of rows with the same URL the first one stays first.
        self._entries = together[np.argsort(together["hash"], kind="stable")]

    def __enter__(self) -> Earlier:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._close_oldest()

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, urls: Sequence[str]) -> list[Known | None]:
        """What is known of each URL."""
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
                if other is not None and (
                    source > sources[i]
                    or other.outcome.status == SUCCESS
                    or outcome.status != SUCCESS
                ):
                    continue  # the first folder's word counts; of its rows, one with the image
                encoded = None
                if outcome.status == SUCCESS:
                    encoded = shard_.images.read(shard_.keys[row])
                    if not encoded:
                        continue  # the tar has lost it
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
                self._tell(folder, number, error)
            while len(self._open) > _OPEN:
                self._close_oldest()
        self._open.move_to_end((source, number))
        return self._open[source, number]

    def _close_oldest(self) -> None:
        _, shard = self._open.popitem(last=False)
        if shard is not None:
            shard.images.close()

    def _tell(self, folder: Path, shard: int, error: Exception) -> None:
        logger.warning(
            f"shard {name_of(shard)} of {folder} cannot be read, its images are "
            f"asked for again: {error}"
        )


def _urls(folder: Path, shard: int) -> list[str]:
    """None of a shard that was not finished."""
    if read_stats(folder, shard) is None:
        return []
    # Not `read_table`: it would take the lake's hive folders for columns.
    urls: list[str] = _read_parquet(files_of(folder, shard)[1], ["url"])["url"].to_pylist()
    return urls


def _read_shard(folder: Path, number: int) -> _Shard:
    tar, parquet, ledger, _ = files_of(folder, number)
    stats = read_stats(folder, number) or {}
    rows = _read_parquet(parquet, ["url", "key", *OUTCOME_COLUMNS])
    return _Shard(
        rows["url"].to_pylist(),
        rows["key"].to_pylist(),
        [Outcome(**row) for row in rows.select(list(OUTCOME_COLUMNS)).to_pylist()],
        histories_of(_read_parquet(ledger, None)),
        stats.get("options_digest", ""),
        ImageBytes(tar),
    )


def _read_parquet(path: Path, columns: list[str] | None) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns)


def _hash(url: str) -> int:
    return int.from_bytes(hashlib.blake2b(url.encode(), digest_size=8).digest(), "little")
