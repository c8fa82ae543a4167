"""What earlier versions of a segment's shards know of a URL: its outcome, its image, its history.

Found by the URL and not by the row, because a row that leaves moves all that come after it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from laion_assets.download.outcomes import (
    OUTCOME_COLUMNS,
    SUCCESS,
    History,
    Outcome,
    histories_of,
)
from laion_assets.download.shards import files_of, read_stats, shards_in
from laion_assets.download.tars import ImageBytes

_OPEN: Final = 4
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

    Takes 18 bytes of memory a row, and a few shards' rows while it is read. Use as a context; not
    for several threads at once.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._open: OrderedDict[tuple[int, int], _Shard] = OrderedDict()
        entries = [np.empty(0, _ENTRY)]
        for source, folder in enumerate(folders):
            for shard in shards_in(folder):
                if read_stats(folder, shard) is None:
                    continue
                # Not `read_table`: it would take the lake's hive folders for columns.
                parquet = pq.ParquetFile(files_of(folder, shard)[1])
                urls = parquet.read(columns=["url"])["url"].to_pylist()
                made = np.empty(len(urls), _ENTRY)
                made["hash"] = [_hash(url) for url in urls]
                made["source"], made["shard"], made["row"] = source, shard, np.arange(len(urls))
                entries.append(made)
        self._entries = np.sort(np.concatenate(entries), order=["hash", "source", "shard", "row"])

    def __enter__(self) -> Earlier:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].images.close()

    def __len__(self) -> int:
        return len(self._entries)

    def look_up(self, urls: Sequence[str]) -> list[Known | None]:
        """What is known of each URL. A damaged shard raises what its reader raises."""
        hashes = np.array([_hash(url) for url in urls], dtype=np.uint64)
        places = np.searchsorted(self._entries["hash"], hashes)
        found: list[Known | None] = [None] * len(urls)
        of_shard: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for i, (place, digest) in enumerate(zip(places, hashes, strict=True)):
            if place < len(self._entries) and self._entries["hash"][place] == digest:
                entry = self._entries[place]
                shard = int(entry["source"]), int(entry["shard"])
                of_shard.setdefault(shard, []).append((i, int(entry["row"])))
        for (source, number), wanted in of_shard.items():
            shard_ = self._read(source, number)
            for i, row in wanted:
                if shard_.urls[row] != urls[i]:
                    continue  # another URL with the same hash
                outcome = shard_.outcomes[row]
                encoded = None
                if outcome.status == SUCCESS:
                    encoded = shard_.images.read(shard_.keys[row])
                    if not encoded:
                        continue  # the tar has lost it
                found[i] = Known(outcome, shard_.histories[row], shard_.options, encoded)
        return found

    def _read(self, source: int, number: int) -> _Shard:
        known = self._open.get((source, number))
        if known is None:
            folder = self._folders[source]
            tar, parquet, ledger, _ = files_of(folder, number)
            stats = read_stats(folder, number) or {}
            rows = pq.ParquetFile(parquet).read(columns=["url", "key", *OUTCOME_COLUMNS])
            known = _Shard(
                rows["url"].to_pylist(),
                rows["key"].to_pylist(),
                [Outcome(**row) for row in rows.select(list(OUTCOME_COLUMNS)).to_pylist()],
                histories_of(pq.ParquetFile(ledger).read()),
                stats.get("options_digest", ""),
                ImageBytes(tar),
            )
            self._open[source, number] = known
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)[1].images.close()
        self._open.move_to_end((source, number))
        return known


def _hash(url: str) -> int:
    return int.from_bytes(hashlib.blake2b(url.encode(), digest_size=8).digest(), "little")
