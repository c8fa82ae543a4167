"""Writes the look-ups of a partition from its table, when it has just been made.

Hashes are the first 8 bytes of the keys by which lists name things
(:mod:`laion_assets.removals.entry`), so that a list's columns are searched for as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from laion_assets import tables
from laion_assets.download.requester import as_asked
from laion_assets.layout import IMAGE_SHARDS, LOOKUP, PAIR_PARQUET, PARTITIONS
from laion_assets.lookup.files import Hashes, Rows, heads_of, write
from laion_assets.pairs.uids import halves
from laion_assets.removals.entries import authority_of, host_keys
from laion_assets.removals.entry import WIDTHS
from laion_assets.removals.keys import hex_keys

FILES: Final[Mapping[str, Mapping[str, str]]] = {
    PAIR_PARQUET: {"url-sha256": "url", "url-md5": "url-md5", "host": "host", "sample-id": "uid"},
    IMAGE_SHARDS: {
        "url-sha256": "url",
        "url-md5": "url-md5",
        "host": "host",
        "sha256": "sha256",
        "md5": "md5",
    },
}
"""Asset -> kind of a list's key -> file in :data:`LOOKUP` by which its rows are found.

The URLs and hosts of `image_shards` are those of redirects alone: its rows' own URLs are those of
the pairs that it was made of."""

BLOCK: Final = 1 << 14
"""Rows that share an entry for a host: it names the first of them that has the host, and any row up
to the next multiple of this may have it, too."""


def write_lookups(asset: str, folder: Path) -> None:
    """Write the look-ups of a partition's folder, into its subfolder :data:`LOOKUP`.

    They follow from the rows of the folder's table alone. Memory: about 110 bytes a row.
    """
    kinds = FILES[asset]
    found = _Entries(kinds)
    start = 0
    for path in PARTITIONS[asset].rows.paths(folder):
        wanted = ("url", "uid") if asset == PAIR_PARQUET else ("redirects", "sha256", "md5")
        for batch in tables.batches(path, wanted):
            found.add(batch, start)
            start += batch.num_rows
    for kind, name in kinds.items():
        write(folder / LOOKUP / name, *found.of(kind))


class _Entries:
    """Hashes of each kind and their rows, gathered batch by batch."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self._hashes: dict[str, list[Hashes]] = {kind: [np.empty(0, np.uint64)] for kind in kinds}
        self._rows: dict[str, list[Rows]] = {kind: [np.empty(0, np.uint32)] for kind in kinds}
        self._last_block: dict[str, int] = {}
        """Authority -> the last block of rows that has an entry for it."""

    def of(self, kind: str) -> tuple[Hashes, Rows]:
        hashes, rows = np.concatenate(self._hashes.pop(kind)), np.concatenate(self._rows.pop(kind))
        if kind != "host":
            return hashes, rows
        # Authorities of one domain have an entry each: their first row will do.
        order = np.lexsort((rows, hashes))
        hashes, rows = hashes[order], rows[order]
        first = np.ones(len(rows), dtype=np.bool_)
        first[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] // BLOCK != rows[:-1] // BLOCK)
        return hashes[first], rows[first]

    def add(self, batch: pa.RecordBatch, start: int) -> None:
        names = batch.schema.names
        if "url" in names:
            rows = np.arange(start, start + batch.num_rows, dtype=np.uint32)
            self._add_urls(batch["url"].to_pylist(), rows)
            self._put("sample-id", halves(batch["uid"])[0], rows)
        else:
            urls, rows = _redirects(batch["redirects"])
            self._add_urls(urls, start + rows)
            for kind in ("sha256", "md5"):
                keys, held = hex_keys(batch[kind], WIDTHS[kind])
                self._put(kind, heads_of(keys.tobytes(), WIDTHS[kind]), start + held)

    def _put(self, kind: str, hashes: Hashes, rows: Any) -> None:
        self._hashes[kind].append(hashes)
        self._rows[kind].append(rows.astype(np.uint32))

    def _add_urls(self, urls: Sequence[str], rows: Any) -> None:
        encoded = [url.encode() for url in urls]
        sha256 = b"".join(hashlib.sha256(url).digest() for url in encoded)
        md5 = b"".join(hashlib.md5(url, usedforsecurity=False).digest() for url in encoded)
        self._put("url-sha256", heads_of(sha256, WIDTHS["url-sha256"]), rows)
        self._put("url-md5", heads_of(md5, WIDTHS["url-md5"]), rows)
        keys, owners = bytearray(), []
        for key, row in self._new_hosts(urls, rows.tolist()):
            keys += key
            owners.append(row)
        self._put("host", heads_of(bytes(keys), WIDTHS["host"]), np.array(owners, np.uint32))

    def _new_hosts(self, urls: Sequence[str], rows: Sequence[int]) -> Iterator[tuple[bytes, int]]:
        """The key and the row of each domain that its block does not have yet."""
        for url, row in zip(urls, rows, strict=True):
            authority = authority_of(url)
            if self._last_block.get(authority) != row // BLOCK:
                self._last_block[authority] = row // BLOCK
                for key in host_keys(authority):
                    yield key, row


def _redirects(column: pa.Array) -> tuple[list[str], Any]:
    """All redirects of a column of lists, as lists name URLs, and the row of each."""
    steps, rows = [], []
    for row, hops in enumerate(column.to_pylist()):
        steps += [as_asked(hop) for hop in hops or ()]
        rows += [row] * len(hops or ())
    return steps, np.array(rows, np.uint32)
