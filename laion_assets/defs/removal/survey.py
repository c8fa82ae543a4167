"""Searches the lake for the lists' entries: which partitions hold listed rows, and which lack rows
that are no longer listed.

It reads published partitions only, and of each only the columns that the entries need. What follows
from the findings does not belong here.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from laion_assets.defs.removal.listed import (
    ROWS,
    TABLES,
    Ids,
    files_of,
    named,
    read,
    rows_of,
    sample_ids,
    tables_of,
)
from laion_assets.download.listed_rows import LOOKED_AT, Resolved, named_rows
from laion_assets.funnel import LISTED
from laion_assets.knn.files import IndexSummary
from laion_assets.lake import Lake, NotPublishedError
from laion_assets.layout import (
    IMAGE_SHARDS,
    KNN_INDEX,
    LISTS,
    PAIR_PARQUET,
    SEARCH_INDEX,
    UNIQUE_PAIRS,
    SegmentKey,
    Table,
)
from laion_assets.lookup.find import Partitions
from laion_assets.pairs.take_out import taken_out
from laion_assets.removals.active import (
    FOLDERS,
    Lists,
    note_resolved,
    read_lists,
    resolved_file,
)
from laion_assets.removals.entries import Entries
from laion_assets.removals.entry import WIDTHS
from laion_assets.removals.ledger import (
    EVENTS,
    TAKEN_OUT,
    RemovalCounts,
    all_listed,
    events_file,
    key_of_entry,
    read_events,
)
from laion_assets.work import Progress

logger = logging.getLogger(__name__)


@dataclass
class Survey:
    """The findings of :func:`survey`."""

    samples: dict[SegmentKey, Counter[str]] = field(default_factory=dict)
    """Partition -> asset -> number of listed rows that it holds."""
    aggregate: int = 0
    """Listed rows in the search index's files, whether a query still returns or skips them."""
    returning: set[SegmentKey] = field(default_factory=set)
    """Partitions that lack rows which are no longer listed."""
    damaged: dict[SegmentKey, set[str]] = field(default_factory=dict)
    """Partition -> assets whose tables are not as they were published: they may hold listed rows,
    and a rebuild takes over nothing of them that is damaged."""
    resolved: int = 0
    """URLs newly known to lead to a listed image or a listed redirect."""

    @property
    def keys(self) -> list[SegmentKey]:
        """The partitions that a rebuild with the lists in force would change."""
        return sorted({*self.samples, *self.returning, *self.damaged})

    def holding(self, key: SegmentKey) -> set[str]:
        """Return the assets of a partition that hold listed rows, or may hold some."""
        return {*self.samples.get(key, ()), *self.damaged.get(key, ())}

    def readable(self, lake: Lake, asset: str, key: SegmentKey) -> bool:
        """Return True if an asset's tables are there as they were published; note damage."""
        if asset in self.damaged.get(key, ()):
            return False
        try:
            damaged = lake.damaged(asset, key, TABLES)
        except NotPublishedError:
            return False  # deleted or set aside since the survey began
        if damaged:
            self.damaged.setdefault(key, set()).add(asset)
            name, problem = next(iter(damaged.items()))
            logger.warning(f"{asset} of {key} may hold listed samples: {name} {problem}")
        return not damaged


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

    What has look-ups is not read unless it holds something (:mod:`laion_assets.lookup`). Raises
    :class:`laion_assets.lookup.files.LookupDamagedError`.
    """
    sought = lists if new is None else new
    partitions = Partitions(lake, keys)
    found = Survey()
    images = _listed_images(lake, partitions, sought, found)
    for name in LISTS:
        resolved = {url for of_key in images.values() for url in of_key.resolved[name]}
        if resolved:
            note = partial(note_resolved, name=name, resolved=resolved)
            found.resolved += lake.update(resolved_file(name), note)
    if any(entries.names_images or entries.names_urls for _, entries in sought.each()):
        now = read_lists(lake.current(*FOLDERS))
        sought = Lists(*(_with_resolved(sought[name], lists[name], now[name]) for name in LISTS))

    pairs, without = partitions.candidates(PAIR_PARQUET, _heads(sought))
    scanned = {key: set(assets) for key, assets in partitions.scanned.items()} if sought else {}
    for key in without:
        scanned.setdefault(key, set()).add(PAIR_PARQUET)
    visited = sorted({*pairs, *images, *scanned})
    progress = Progress("survey of the lists", "segments", len(visited), logger)
    gone: dict[SegmentKey, Ids] = {}
    for key in visited:
        whole, of_images = scanned.get(key, set()), images.get(key, _Images())
        segment = _Segment(lake, key, sought, whole, of_images, pairs.get(key))
        readable = [
            asset
            for asset in partitions.assets(key)
            if rows_of(asset) is not None and found.readable(lake, asset, key)
        ]
        counts = segment.count(readable)
        if counts:
            found.samples[key] = counts
        gone[key] = segment.ids
        progress.advance()
    found.returning = set(_returning(lake, partitions, lists, found))
    if keys is None and sought:
        found.aggregate = _count_indexed(lake, partitions, sought, gone)
    return found


def _heads(lists: Lists) -> dict[str, NDArray[np.uint64]]:
    """Kind of key -> the first 8 bytes of what the lists have of it, as look-ups want them."""
    return {
        kind: np.unique(np.concatenate([entries.heads(kind) for _, entries in lists.each()]))
        for kind in (WIDTHS if lists else ())
    }


def _with_resolved(sought: Entries, listed: Entries, now: Entries) -> Entries:
    """Return the entries sought, and the URLs that have been resolved since ``listed`` was read."""
    return sought if now.digest == listed.digest else sought.and_also(now.without(listed))


@dataclass
class _Images:
    """Listed rows of one partition of `image_shards`, by what the images' own table knows."""

    rows: set[int] = field(default_factory=set)
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    resolved: Resolved = field(default_factory=lambda: {name: set() for name in LISTS})


def _listed_images(
    lake: Lake, partitions: Partitions, lists: Lists, survey: Survey
) -> dict[SegmentKey, _Images]:
    """Find the images that the lists name by their hashes or redirects."""
    if not lists:
        return {}
    found: dict[SegmentKey, _Images] = {}
    rows, without = partitions.candidates(IMAGE_SHARDS, _heads(lists))
    whole = {*without, *(key for key, of in partitions.scanned.items() if IMAGE_SHARDS in of)}
    for key in sorted({*rows, *whole}):
        if not survey.readable(lake, IMAGE_SHARDS, key):
            continue
        of_key = _Images()
        paths = files_of(lake.folder(IMAGE_SHARDS, key, TABLES), ROWS[IMAGE_SHARDS])
        wanted = None if key in whole else rows[key]
        for numbers, table in read(paths, LOOKED_AT, wanted):
            if wanted is not None:
                # What names a row by its own URL is found among the pairs.
                own = pc.or_(pc.is_valid(table["sha256"]), pc.is_valid(table["md5"]))
                own = pc.or_(own, pc.is_valid(table["redirects"]))
                numbers, table = numbers[own.to_numpy()], table.filter(own)
            listed, _ = named_rows(table, lists)
            held = np.unique(np.array([row.row for row in listed], np.int64))
            of_key.rows |= set(numbers[held].tolist())
            of_key.ids = np.union1d(of_key.ids, sample_ids(table.take(held), ROWS[IMAGE_SHARDS]))
            for row in listed:
                if row.resolved:
                    of_key.resolved[row.list].add((row.key, row.url_sha256))
        if of_key.rows:
            found[key] = of_key
    return found


@dataclass
class _Segment:
    """The search of one segment: pairs by look-up, and all that was made of them by SAMPLE_ID."""

    lake: Lake
    key: SegmentKey
    lists: Lists
    whole: Collection[str]
    """Assets of which every row is compared with the lists."""
    images: _Images
    pairs: NDArray[Any] | None
    """Rows of the pairs that may be listed."""
    ids: Ids = field(init=False)
    """SAMPLE_IDs of the listed rows found so far."""

    def count(self, assets: Sequence[str]) -> Counter[str]:
        """Return the number of listed rows of each asset that has any."""
        self.ids = self.images.ids
        found = Counter[str]()
        for asset in assets:
            rows = rows_of(asset)
            assert rows is not None
            folder = self.lake.folder(asset, self.key, TABLES)
            if asset == IMAGE_SHARDS:
                n = len(self.images.rows | set(self._held(folder, rows).tolist()))
            elif asset in self.whole:
                n = self._named(folder, rows, None)
            elif asset == PAIR_PARQUET:
                n = 0 if self.pairs is None else self._named(folder, rows, self.pairs)
            else:
                n = len(self._held(folder, rows))
            if n:
                found[asset] = n
        return found

    def _named(self, folder: Path, rows: Table, numbers: NDArray[Any] | None) -> int:
        """Count the rows, of these numbers or of all, that a list names; learn their SAMPLE_IDs.

        Rows without a URL are counted by the SAMPLE_IDs known, too.
        """
        n = 0
        for table in tables_of(files_of(folder, rows), rows, self.lists, numbers):
            mask = named(table, rows, self.lists)
            ids = sample_ids(table, rows)
            if rows.url is None:
                mask |= np.isin(ids, self.ids)
            n += int(mask.sum())
            self.ids = np.union1d(self.ids, ids[mask])
        return n

    def _held(self, folder: Path, rows: Table) -> NDArray[np.int64]:
        """Return the numbers of the rows whose SAMPLE_ID is known to be listed."""
        column = rows.sample_id or rows.uid
        held = [np.empty(0, np.int64)]
        if column and len(self.ids):
            for numbers, table in read(files_of(folder, rows), [column]):
                held.append(numbers[np.isin(sample_ids(table, rows), self.ids)])
        return np.concatenate(held)


def _count_indexed(
    lake: Lake, partitions: Partitions, lists: Lists, gone: Mapping[SegmentKey, Ids]
) -> int:
    """Count the rows of the search index that are listed or whose SAMPLE_ID is in ``gone``.

    A segment whose index has not changed since the merge is read from that index.
    """
    if not lake.has(SEARCH_INDEX):
        return 0
    merged = datetime.fromisoformat(lake.manifest(SEARCH_INDEX).started).timestamp()
    lake.fetch(SEARCH_INDEX, names="index.json")
    folder = lake.folder(SEARCH_INDEX, names="*/ids.npy")
    n = 0
    for run in IndexSummary.read(folder).runs:
        start = 0
        for entry in run.segments:
            key = SegmentKey(entry.crawl, entry.segment)
            outdated = entry.dropped or not partitions.published_at(KNN_INDEX, key) < merged
            if outdated or len(gone.get(key, ())):
                held = np.load(folder / run.folder / "ids.npy", mmap_mode="r", allow_pickle=False)
                ids = np.asarray(held[start : start + entry.rows])
                mask = np.isin(ids, gone.get(key, ()))
                for _, entries in lists.each():
                    mask |= entries.which_samples(ids)
                n += int(mask.sum())
            start += entry.rows
    return n


def _returning(
    lake: Lake, partitions: Partitions, lists: Lists, found: Survey
) -> Iterator[SegmentKey]:
    """Yield partitions that lack rows which are no longer listed.

    The removal ledger says what was ever taken out of which; a segment that it does not name lacks
    nothing.
    """
    root = lake.current(EVENTS, deep=True)
    for asset in (PAIR_PARQUET, UNIQUE_PAIRS, IMAGE_SHARDS):
        for key in partitions.keys(asset):
            # Most have none, and a path as an object would cost more than the look.
            if os.path.exists(f"{root}/{events_file(asset, key)}"):  # noqa: PTH110
                last = {(e.list, e.entry): e for e in read_events(root, asset, key)}
                taken = RemovalCounts(
                    {
                        (event.list, key_of_entry(event.entry)): event.samples
                        for event in last.values()
                        if event.event == TAKEN_OUT
                    }
                )
                if not all_listed(taken, lists) and _lacks(lake, asset, key, lists, found):
                    yield key


def _lacks(lake: Lake, asset: str, key: SegmentKey, lists: Lists, found: Survey) -> bool:
    """Return True if a partition lacks rows that are no longer listed, though something that was
    once taken out of it is not."""
    if asset != PAIR_PARQUET and not _refused(lake, asset, key):
        return False
    if asset == UNIQUE_PAIRS:
        return True
    if not found.readable(lake, asset, key):
        return False
    paths = ROWS[asset].paths(lake.folder(asset, key, TABLES))
    if asset == PAIR_PARQUET:
        return not all(all_listed(taken_out(part), lists) for part in paths)
    for _, table in read(paths, LOOKED_AT):
        named, refused = named_rows(table, lists)
        if refused - {row.row for row in named}:
            return True
    return False


def _refused(lake: Lake, asset: str, key: SegmentKey) -> bool:
    """Return True if the partition's stages refused rows because of a list."""
    try:
        counts = lake.manifest(asset, key).counts
    except NotPublishedError:
        return False
    return any(LISTED & set(of_stage.rejects) for of_stage in counts)
