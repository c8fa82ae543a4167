"""Searches the lake for the lists' entries: which partitions hold listed rows, and which lack rows
that are no longer listed.

It reads published partitions only, and of each only the columns that the entries need. What follows
from the findings does not belong here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.download.listed_rows import LOOKED_AT, named_rows, resolved_in
from laion_assets.download.shard_files import rows_in_turn
from laion_assets.download.shards import MAKING
from laion_assets.funnel import LISTED
from laion_assets.lake import Lake, NotPublishedError
from laion_assets.layout import (
    FILTERED_SUBSET,
    IMAGE_SHARDS,
    LISTS,
    PAIR_PARQUET,
    PARTITIONS,
    SEARCH_INDEX,
    SUBSET_PREFIX,
    UNIQUE_PAIRS,
    SegmentKey,
    Table,
)
from laion_assets.pairs.take_out import taken_out
from laion_assets.pairs.uids import halves
from laion_assets.removals.active import (
    FOLDERS,
    Lists,
    note_resolved,
    read_lists,
    resolved_file,
)
from laion_assets.removals.entries import Entries
from laion_assets.removals.ledger import (
    TAKEN_OUT,
    RemovalCounts,
    all_listed,
    events_file,
    key_of_entry,
    read_events,
)
from laion_assets.tables import batches
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

Ids = NDArray[np.int64]


ROWS: Final = {
    asset: partition.rows for asset, partition in PARTITIONS.items() if partition.rows.names_samples
}
"""Asset by segment -> its rows of samples, in the order of the data's way; further subsets have
those of `filtered_subset`."""

TABLES: Final = "*.parquet"
"""The files of a partition that are searched."""

_IDS_AT_ONCE: Final = 1_000_000


def further_subsets(lake: Lake) -> list[str]:
    """Return the further subsets in the lake, whether the settings still have them or not."""
    return lake.assets(f"{SUBSET_PREFIX}*")


def rows_of(asset: str) -> Table | None:
    """Return the asset's rows of samples, None if it has none by segment."""
    return ROWS.get(FILTERED_SUBSET if asset.startswith(SUBSET_PREFIX) else asset)


@dataclass
class Survey:
    """The findings of :func:`survey`."""

    samples: dict[SegmentKey, Counter[str]] = field(default_factory=dict)
    """Partition -> asset -> number of listed rows that it holds."""
    aggregate: int = 0
    """Listed rows in the search index's files, whether a query still returns or skips them."""
    returning: set[SegmentKey] = field(default_factory=set)
    """Partitions that lack rows which are no longer listed."""
    resolved: int = 0
    """URLs newly known to lead to a listed image or a listed redirect."""

    @property
    def keys(self) -> list[SegmentKey]:
        """The partitions that a rebuild with the lists in force would change."""
        return sorted({*self.samples, *self.returning})

    def total(self) -> Counter[str]:
        """Return the number of listed rows of each asset, summed over all partitions."""
        counts = Counter[str]()
        for of_key in self.samples.values():
            counts += of_key
        return counts


def survey(
    lake: Lake,
    lists: Lists,
    *,
    new: Lists | None = None,
    keys: Collection[SegmentKey] | None = None,
) -> Survey:
    """Search the partitions ``keys``, or all, for what ``lists`` name.

    ``new`` is the part of ``lists`` to search for, if not all of them. URLs that lead to listed
    images are recorded (:mod:`laion_assets.removals.active`) and searched for, too.
    """
    sought = lists if new is None else new
    found = Survey()

    def wanted(asset: str) -> list[SegmentKey]:
        return [key for key in lake.segments(asset) if keys is None or key in keys]

    if any(entries.names_images or entries.names_urls for _, entries in sought.each()):
        for key in wanted(IMAGE_SHARDS):
            resolved, _ = resolved_in(lake.folder(IMAGE_SHARDS, key, TABLES), sought)
            for name in LISTS:
                found.resolved += lake.update(
                    resolved_file(name),
                    partial(note_resolved, name=name, resolved=resolved[name]),
                )
        now = read_lists(lake.current(*FOLDERS))
        sought = Lists(*(_with_resolved(sought[name], lists[name], now[name]) for name in LISTS))

    by_key: dict[SegmentKey, list[str]] = {}
    for asset in [*ROWS, *further_subsets(lake)]:
        for key in wanted(asset):
            by_key.setdefault(key, []).append(asset)
    progress = Progress("survey of the lists", "segments", len(by_key), logger)
    gone: list[Ids] = []
    for key, assets in sorted(by_key.items()):
        of_key: list[Ids] = [np.empty(0, np.int64)]
        for asset in assets:
            n = _look(lake.folder(asset, key, TABLES), asset, sought, of_key)
            if n:
                found.samples.setdefault(key, Counter())[asset] = n
        gone += of_key
        if _lacks(lake, key, assets, lists):
            found.returning.add(key)
        progress.advance()
    if keys is None:
        found.aggregate = _count_indexed(lake.folder(SEARCH_INDEX, names="*/ids.npy"), sought, gone)
    return found


def _with_resolved(sought: Entries, listed: Entries, now: Entries) -> Entries:
    """Return the entries sought, and the URLs that have been resolved since ``listed`` was read."""
    return sought if now.digest == listed.digest else sought.and_also(now.without(listed))


def _look(folder: Path, asset: str, lists: Lists, gone: list[Ids]) -> int:
    """Count the listed rows of an asset's partition; add their SAMPLE_IDs to ``gone``."""
    if asset == IMAGE_SHARDS:
        tables = rows_in_turn(folder, LOOKED_AT) if lists else ()
        return sum(len(named_rows(table, lists)[0]) for table in tables)
    rows = rows_of(asset)
    assert rows is not None
    return _count(folder, rows, lists, gone)


def _count(folder: Path, rows: Table, lists: Lists, gone: list[Ids]) -> int:
    """Count the listed rows of a folder of parquet files; add their SAMPLE_IDs to ``gone``.

    Files without URLs also count the rows whose SAMPLE_ID is in ``gone``, and add none.
    """
    if not lists:
        return 0
    known = np.unique(np.concatenate([*gone, np.empty(0, np.int64)]))
    n = 0
    for batch in _batches(folder, rows, lists):
        ids = _sample_ids(batch, rows)
        mask = np.isin(ids, known) if rows.url is None and ids is not None else None
        for _, entries in lists.each():
            named = _named(batch, rows, entries, ids)
            mask = named if mask is None else mask | named
        assert mask is not None
        n += int(mask.sum())
        if ids is not None and rows.url is not None:
            gone.append(ids[mask])
    return n


def _count_indexed(folder: Path, lists: Lists, gone: list[Ids]) -> int:
    """Count the rows of the search index that are listed or whose SAMPLE_ID is in ``gone``."""
    if not lists:
        return 0
    known = np.unique(np.concatenate([*gone, np.empty(0, np.int64)]))
    n = 0
    for path in sorted(folder.glob("runs/*/ids.npy")):
        held = np.load(path, mmap_mode="r", allow_pickle=False)
        for start in range(0, len(held), _IDS_AT_ONCE):
            ids = np.asarray(held[start : start + _IDS_AT_ONCE])
            mask = np.isin(ids, known)
            for _, entries in lists.each():
                mask |= entries.which_samples(ids)
            n += int(mask.sum())
    return n


def _batches(folder: Path, rows: Table, lists: Lists) -> Iterator[Any]:
    columns = [name for name in (rows.url, rows.uid, rows.sample_id) if name]
    if rows.hashes and any(entries.names_images for _, entries in lists.each()):
        columns += ["sha256", "md5"]
    for path in rows.paths(folder):
        # `read_table` would make columns of the lake's hive folders.
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(columns=columns)


def _sample_ids(batch: Any, rows: Table) -> Ids | None:
    if rows.sample_id:
        ids: Ids = batch[rows.sample_id].to_numpy(zero_copy_only=False)
        return ids
    return halves(batch[rows.uid])[0].view(np.int64) if rows.uid else None


def _named(batch: Any, rows: Table, entries: Entries, ids: Ids | None) -> NDArray[np.bool_]:
    mask = np.zeros(batch.num_rows, dtype=np.bool_)
    if rows.url and entries.names_urls:
        mask |= entries.which_urls(batch[rows.url].to_pylist())
    if rows.hashes and entries.names_images:
        mask |= entries.which_images(batch["sha256"], batch["md5"])
    if ids is not None:
        mask |= entries.which_samples(ids)
    return mask


def _lacks(lake: Lake, key: SegmentKey, assets: Sequence[str], lists: Lists) -> bool:
    """Return True if a partition lacks rows that are no longer listed."""
    if PAIR_PARQUET in assets:
        parts = ROWS[PAIR_PARQUET].paths(lake.folder(PAIR_PARQUET, key, TABLES))
        if not all(all_listed(taken_out(part), lists) for part in parts):
            return True
    if UNIQUE_PAIRS in assets and _refused(lake, UNIQUE_PAIRS, key):
        root = lake.current(str(Path(events_file(UNIQUE_PAIRS, key)).parent))
        last = {(e.list, e.entry): e for e in read_events(root, UNIQUE_PAIRS, key)}
        taken = RemovalCounts(
            {
                (event.list, key_of_entry(event.entry)): event.samples
                for event in last.values()
                if event.event == TAKEN_OUT
            }
        )
        if not all_listed(taken, lists):
            return True
    if IMAGE_SHARDS in assets and _refused(lake, IMAGE_SHARDS, key):
        for table in rows_in_turn(lake.folder(IMAGE_SHARDS, key, TABLES), LOOKED_AT):
            named, refused = named_rows(table, lists)
            if refused - {row.row for row in named}:
                return True
    return False


def holds_listed(folder: Path, lists: Lists) -> bool:
    """Return True if an unfinished partition holds listed rows, or may do so: in a torn file, or in
    images whose rows are not written yet."""
    for path in folder.rglob("*"):
        if path.name.startswith(MAKING):
            return True
        if path.suffix == ".parquet" and _file_holds(path, lists):
            return True
    return False


def _file_holds(path: Path, lists: Lists) -> bool:
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid:
        return True
    names = set(schema.names)
    if {"url", "redirects", "reason"} <= names:
        columns = [name for name in LOOKED_AT if name in names]
        tables = (pa.Table.from_batches([batch]) for batch in batches(path, columns))
        return any(named_rows(table, lists)[0] for table in tables)

    def present(*possible: str) -> str | None:
        return next((name for name in possible if name in names), None)

    rows = Table(
        path.name,
        schema,
        url=present("url", "URL"),
        uid=present("uid"),
        sample_id=present("SAMPLE_ID"),
        hashes="sha256" in names,
    )
    readable = rows.url or rows.uid or rows.sample_id
    return bool(readable and _count(path.parent, rows, lists, []))


def _refused(lake: Lake, asset: str, key: SegmentKey) -> bool:
    """Return True if the partition's stages refused rows because of a list."""
    try:
        counts = lake.manifest(asset, key).counts
    except NotPublishedError:
        return False
    return any(LISTED & set(of_stage.rejects) for of_stage in counts)
