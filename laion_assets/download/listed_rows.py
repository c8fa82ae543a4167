"""Find the rows of a shard's parquet that the lists name, by all that is known of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from laion_assets.download.requester import as_asked
from laion_assets.download.shard_files import rows_in_turn
from laion_assets.funnel import LISTED
from laion_assets.removals.active import REASON_OF_LIST, Lists
from laion_assets.removals.entries import Entries
from laion_assets.removals.entry import Key
from laion_assets.removals.ledger import RemovalCounts

LOOKED_AT: Final = ("url", "uid", "sha256", "md5", "redirects", "reason")
"""The columns that lists name rows by, and the reason for their refusal."""


class Named(NamedTuple):
    """A row that a list names, by the entry of ``key``.

    ``resolved``: the entry names the row's image or a redirect, not its own URL or uid.
    """

    row: int
    list: str
    key: Key
    resolved: bool
    url_sha256: bytes


def named_rows(
    table: pa.Table, lists: Lists, *, samples: bool = True
) -> tuple[list[Named], set[int]]:
    """The rows that the lists name, and the rows that were refused because a list named them.

    A row is named by its URL, a redirect on the way to its image, the image's hashes or, with
    ``samples``, its uid. ``table``: rows of shards, with :data:`LOOKED_AT`.
    """
    table = table.combine_chunks()
    urls = table["url"].to_pylist()
    refused = {row for row, reason in enumerate(table["reason"].to_pylist()) if reason in LISTED}
    asked: list[str] = []
    steps: list[str] = []
    owners: list[int] = []
    if any(entries.names_urls for _, entries in lists.each()):
        asked = [as_asked(url) for url in urls]
        steps, owners = _steps(table)
    found: dict[int, Named] = {}
    for name, entries in lists.each():
        for row, key, resolved in _named_by(entries, table, asked, steps, owners, samples):
            if row not in found:
                digest = hashlib.sha256(urls[row].encode()).digest()
                found[row] = Named(row, name, key, resolved, digest)
    return list(found.values()), refused


def _steps(table: pa.Table) -> tuple[list[str], list[int]]:
    """All redirects, and the row of each."""
    steps: list[str] = []
    owners: list[int] = []
    for row, hops in enumerate(table["redirects"].to_pylist()):
        for hop in hops or ():
            steps.append(as_asked(hop))
            owners.append(row)
    return steps, owners


def _named_by(
    entries: Entries,
    table: pa.Table,
    asked: list[str],
    steps: list[str],
    owners: list[int],
    samples: bool,
) -> list[tuple[int, Key, bool]]:
    found: list[tuple[int, Key | None, bool]] = []
    if entries.names_urls:
        hits = np.flatnonzero(entries.which_urls(asked)).tolist()
        found += [(row, entries.key_for_url(asked[row]), False) for row in hits]
        hits = np.flatnonzero(entries.which_urls(steps)).tolist()
        found += [(owners[hit], entries.key_for_url(steps[hit]), True) for hit in hits]
    if entries.names_images:
        sha256, md5 = table["sha256"], table["md5"]
        for row in np.flatnonzero(entries.which_images(sha256, md5)).tolist():
            key = entries.key_for_image(sha256[row].as_py(), md5[row].as_py())
            found.append((row, key, True))
    if samples and entries.names_samples and "uid" in table.column_names:
        heads = [int.from_bytes(bytes.fromhex(uid[:16]), "big") for uid in table["uid"].to_pylist()]
        ids = np.array(heads, dtype=np.uint64).view(np.int64)
        for row in np.flatnonzero(entries.which_samples(ids)).tolist():
            found.append((row, entries.key_for_sample(int(ids[row])), False))
    return [(row, key, resolved) for row, key, resolved in found if key is not None]


Resolved = dict[str, set[tuple[Key, bytes]]]
"""List -> the entries that name an image or a step on the way to it, each with the SHA-256 of the
URL that leads there."""


def resolved_in(folder: Path, lists: Lists) -> tuple[Resolved, RemovalCounts]:
    """The resolved URLs of a folder of shards or a partition, and how many rows each entry
    names."""
    resolved: Resolved = {name: set() for name in REASON_OF_LIST}
    removed = RemovalCounts()
    for table in rows_in_turn(folder, LOOKED_AT) if lists else ():
        for row in named_rows(table, lists)[0]:
            removed[row.list, row.key] += 1
            if row.resolved:
                resolved[row.list].add((row.key, row.url_sha256))
    return resolved, removed
