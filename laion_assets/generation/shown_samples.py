"""The samples whose real pictures a finished demo shows, and whether it may still show them.

A picture that is on a removal list, or no longer in the subset, must not be served from a report
that was written earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets import schemas
from laion_assets.files import atomic_path
from laion_assets.generation.evaluation import Real
from laion_assets.generation.pairs import Pairs
from laion_assets.knn.subset import SubsetOf
from laion_assets.layout import (
    FILTERED_SUBSET,
    PARTITIONS,
    SegmentKey,
)
from laion_assets.removals.active import Lists
from laion_assets.tables import read_parquet

SHOWN: Final = "shown.parquet"
PARTS: Final = PARTITIONS[FILTERED_SUBSET].rows.files
"""Files of a subset, below its partition's folder."""


def write_shown(out: Path, pairs: Pairs, real: Sequence[Real]) -> None:
    """Write ``shown.parquet``: the samples whose real pictures are in the demo's pages.

    It holds at least one pair of each caption that was taken from the held-out pairs.
    """
    numbers = np.unique(np.concatenate([np.empty(0, np.int64), *(one.numbers for one in real)]))
    shards, rows = pairs.places(numbers)
    tables = [schemas.SHOWN.empty_table()]
    for shard in np.unique(shards):
        table = pairs.shards[shard].read(schemas.SHOWN.names)
        tables.append(table.take(pa.array(rows[shards == shard])).cast(schemas.SHOWN))
    with atomic_path(out / SHOWN) as beside:
        pq.write_table(pa.concat_tables(tables), beside, compression="zstd")


def shows_listed(folder: Path, lists: Lists) -> bool:
    """Return whether the demo in ``folder`` shows a listed sample.

    A demo without ``shown.parquet`` counts as showing one as soon as any list has an entry.
    """
    shown = _read(folder)
    return bool(lists) if shown is None else _listed(shown, lists)


def may_be_shown(folder: Path, lists: Lists, subset_of: SubsetOf) -> bool:
    """Return whether the demo in ``folder`` may be shown.

    None of its samples may be listed, and the subset must still have all of them. ``subset_of``
    returns the folder of a segment's subset, which need not exist.
    """
    shown = _read(folder)
    if shown is None or _listed(shown, lists):
        return False
    wanted: dict[SegmentKey, set[int]] = {}
    for row in shown.to_pylist():
        key = SegmentKey(row["crawl"], row["segment"])
        wanted.setdefault(key, set()).add(row["SAMPLE_ID"])
    return all(_has(subset_of(key), ids) for key, ids in wanted.items())


def _read(folder: Path) -> pa.Table | None:
    path = folder / SHOWN
    if not path.exists():
        return None
    return read_parquet(path)


def _listed(shown: pa.Table, lists: Lists) -> bool:
    return any(bool(entries.which_rows(shown).any()) for _, entries in lists.each())


def _has(subset: Path, sample_ids: set[int]) -> bool:
    left = np.array(sorted(sample_ids), np.int64)
    for part in sorted(subset.glob(PARTS)):
        if not len(left):
            break
        left = np.setdiff1d(left, read_parquet(part, ["SAMPLE_ID"])["SAMPLE_ID"].to_numpy())
    return not len(left)
