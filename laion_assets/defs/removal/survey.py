"""Where in the lake the lists' entries are: which partitions hold what is listed, or lack what is
listed no more.

It reads published partitions only, and of each no more columns than the entries ask for. What
does not belong here: what is done about it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.download.listed_rows import met_in, named_rows
from laion_assets.download.shards import MAKING, files_of, shards_in
from laion_assets.funnel import LISTED
from laion_assets.lake import Lake, NotPublishedError
from laion_assets.pairs.take_out import taken_out
from laion_assets.pairs.uids import halves
from laion_assets.progress import Progress
from laion_assets.removals.active import FOLDERS, REASONS, Lists, met_file, note_met, read_lists
from laion_assets.removals.ledger import (
    TAKEN_OUT,
    all_listed,
    events_file,
    key_of_entry,
    read_events,
)
from laion_assets.removals.ledger import Taken as Tally
from laion_assets.removals.lists import Entries
from laion_assets.segments import SegmentKey

logger = logging.getLogger(__name__)

Ids = NDArray[np.int64]


class _Rows(NamedTuple):
    """An asset's parquet files, and the columns by which an entry names a row of theirs."""

    files: str
    url: str | None = None
    uid: str | None = None
    sample_id: str | None = None
    hashes: bool = False


ROWS: Final = {
    "pair_parquet": _Rows("part-*.parquet", url="url", uid="uid"),
    "unique_pairs": _Rows("part-*.parquet", url="url", uid="uid"),
    "image_shards": _Rows("[0-9]*.parquet"),
    "embeddings": _Rows(
        "metadata/metadata_*.parquet", url="url", sample_id="SAMPLE_ID", hashes=True
    ),
    "scored_pairs": _Rows("part-*.parquet", url="url", sample_id="SAMPLE_ID", hashes=True),
    "filtered_subset": _Rows("part-*.parquet", url="URL", sample_id="SAMPLE_ID", hashes=True),
    "knn_index": _Rows("ids.parquet", sample_id="SAMPLE_ID"),
}
"""Asset by segment -> where its rows are, in the order of the data's way; further subsets have
those of `filtered_subset`."""

FURTHER: Final = "subset_*"
"""The folders of further subsets in a lake."""

TABLES: Final = "*.parquet"
"""The files of a partition that are looked into."""

AGGREGATE: Final = "search_index"
_IDS_AT_ONCE: Final = 1_000_000


def further_subsets(lake: Lake) -> list[str]:
    """The further subsets that the lake holds, whether the settings still have them or not."""
    return lake.assets(FURTHER)


def rows_of(asset: str) -> _Rows | None:
    """None for an asset without rows of samples."""
    return ROWS.get("filtered_subset" if fnmatch(asset, FURTHER) else asset)


@dataclass
class Survey:
    """What was found."""

    samples: dict[SegmentKey, Counter[str]] = field(default_factory=dict)
    """Partitions that hold listed rows: how many, by asset."""
    aggregate: int = 0
    """Listed rows of the search index's files, whether they are still found or passed over."""
    returning: set[SegmentKey] = field(default_factory=set)
    """Partitions that lack rows which nothing lists any more."""
    met: int = 0
    """URLs newly known to lead to what is listed."""

    @property
    def keys(self) -> list[SegmentKey]:
        """The partitions that are not as the lists would have them."""
        return sorted({*self.samples, *self.returning})

    def total(self) -> Counter[str]:
        """Listed rows by asset, through all partitions."""
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
    """Look for what ``lists``, or only ``new`` of them, name.

    URLs that lead to listed images are noted as met (:mod:`laion_assets.removals.active`) and
    looked for, too.
    """
    sought = lists if new is None else new
    found = Survey()

    def wanted(asset: str) -> list[SegmentKey]:
        return [key for key in lake.segments(asset) if keys is None or key in keys]

    if any(entries.names_images or entries.names_urls for _, entries in sought.each()):
        for key in wanted("image_shards"):
            met, _ = met_in(lake.folder("image_shards", key, TABLES), sought)
            for name in REASONS:
                found.met += lake.update(
                    met_file(name), partial(note_met, name=name, met=met[name])
                )
        now = read_lists(lake.current(*FOLDERS))
        sought = Lists(*(_with_met(sought[name], lists[name], now[name]) for name in REASONS))

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
        found.aggregate = _count_indexed(lake.folder(AGGREGATE, names="*/ids.npy"), sought, gone)
    return found


def _with_met(sought: Entries, listed: Entries, now: Entries) -> Entries:
    return sought if now.digest == listed.digest else sought.and_also(now.without(listed))


def _look(folder: Path, asset: str, lists: Lists, gone: list[Ids]) -> int:
    """Rows that are listed; the SAMPLE_IDs of these are added to ``gone``."""
    if asset == "image_shards":
        shards = shards_in(folder) if lists else ()
        return sum(len(named_rows(files_of(folder, shard)[1], lists)[0]) for shard in shards)
    rows = rows_of(asset)
    assert rows is not None
    return _count(folder, rows, lists, gone)


def _count(folder: Path, rows: _Rows, lists: Lists, gone: list[Ids]) -> int:
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
    """Rows of the search index's runs that are listed, or among ``gone``."""
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


def _batches(folder: Path, rows: _Rows, lists: Lists) -> Iterator[Any]:
    columns = [name for name in (rows.url, rows.uid, rows.sample_id) if name]
    if rows.hashes and any(entries.names_images for _, entries in lists.each()):
        columns += ["sha256", "md5"]
    for path in sorted(folder.glob(rows.files)):
        # Not `read_table`: it would take the lake's hive folders for columns.
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(columns=columns)


def _sample_ids(batch: Any, rows: _Rows) -> Ids | None:
    if rows.sample_id:
        ids: Ids = batch[rows.sample_id].to_numpy(zero_copy_only=False)
        return ids
    return halves(batch[rows.uid])[0].view(np.int64) if rows.uid else None


def _named(batch: Any, rows: _Rows, entries: Entries, ids: Ids | None) -> NDArray[np.bool_]:
    mask = np.zeros(batch.num_rows, dtype=np.bool_)
    if rows.url and entries.names_urls:
        mask |= entries.which_urls(batch[rows.url].to_pylist())
    if rows.hashes and entries.names_images:
        mask |= entries.which_images(batch["sha256"], batch["md5"])
    if ids is not None:
        mask |= entries.which_samples(ids)
    return mask


def _lacks(lake: Lake, key: SegmentKey, assets: Sequence[str], lists: Lists) -> bool:
    """Whether a partition lacks what nothing lists any more."""
    if "pair_parquet" in assets:
        parts = lake.folder("pair_parquet", key, TABLES).glob("part-*.parquet")
        if not all(all_listed(taken_out(part), lists) for part in parts):
            return True
    if "unique_pairs" in assets and _refused(lake, "unique_pairs", key):
        root = lake.current(str(Path(events_file("unique_pairs", key)).parent))
        last = {(e.list, e.entry): e for e in read_events(root, "unique_pairs", key)}
        taken = Tally(
            {
                (event.list, key_of_entry(event.entry)): event.samples
                for event in last.values()
                if event.event == TAKEN_OUT
            }
        )
        if not all_listed(taken, lists):
            return True
    if "image_shards" in assets and _refused(lake, "image_shards", key):
        folder = lake.folder("image_shards", key, TABLES)
        for shard in shards_in(folder):
            named, refused = named_rows(files_of(folder, shard)[1], lists)
            if refused - {row.row for row in named}:
                return True
    return False


def holds_listed(folder: Path, lists: Lists) -> bool:
    """Whether a partition in the making holds listed rows, or may: in a torn file, or in images
    whose rows are not written yet."""
    for path in folder.rglob("*"):
        if path.name.startswith(MAKING):
            return True
        if path.suffix == ".parquet" and _file_holds(path, lists):
            return True
    return False


def _file_holds(path: Path, lists: Lists) -> bool:
    try:
        names = set(pq.read_schema(path).names)
    except pa.ArrowInvalid:
        return True
    if {"url", "redirects", "reason"} <= names:
        return bool(named_rows(path, lists)[0])
    columns = {"url": ("url", "URL"), "uid": ("uid",), "sample_id": ("SAMPLE_ID",)}
    rows = _Rows(
        path.name,
        **{
            column: next((name for name in possible if name in names), None)
            for column, possible in columns.items()
        },
        hashes="sha256" in names,
    )
    readable = rows.url or rows.uid or rows.sample_id
    return bool(readable and _count(path.parent, rows, lists, []))


def _refused(lake: Lake, asset: str, key: SegmentKey) -> bool:
    try:
        counts = lake.manifest(asset, key).counts
    except NotPublishedError:
        return False
    return any(LISTED & set(of_stage.rejects) for of_stage in counts)
