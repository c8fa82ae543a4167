"""Reads the tables of a partition, and finds the rows that lists name.

Where in the lake to look, and what follows from it, does not belong here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.download.listed_rows import LOOKED_AT, named_rows
from laion_assets.download.shards import MAKING
from laion_assets.lake import Lake, LakeError
from laion_assets.layout import FILTERED_SUBSET, PARTITIONS, SUBSET_PREFIX, Table
from laion_assets.lookup.files import heads_of
from laion_assets.lookup.rows import read_rows
from laion_assets.pairs.uids import halves
from laion_assets.removals.active import Lists
from laion_assets.removals.keys import hex_keys
from laion_assets.schemas import UID_BYTES
from laion_assets.tables import rows_in

Ids = NDArray[np.int64]


ROWS: Final = {
    asset: partition.rows for asset, partition in PARTITIONS.items() if partition.rows.names_samples
}
"""Asset by segment -> its rows of samples, in the order of the data's way; further subsets have
those of `filtered_subset`."""

TABLES: Final = "*.parquet"
"""The files of a partition that are searched."""


def further_subsets(lake: Lake) -> list[str]:
    """Return the further subsets in the lake, whether the settings still have them or not."""
    return lake.assets(f"{SUBSET_PREFIX}*")


def rows_of(asset: str) -> Table | None:
    """Return the asset's rows of samples, None if it has none by segment."""
    return ROWS.get(FILTERED_SUBSET if asset.startswith(SUBSET_PREFIX) else asset)


def files_of(folder: Path, rows: Table) -> list[Path]:
    """A table's files in a partition's folder. Raises :class:`LakeError` if it has none."""
    paths = rows.paths(folder)
    if not paths and folder.exists():
        raise LakeError(
            f"{folder} has no {rows.files}: an earlier version made it. Materialize "
            "it again first: nothing is found in it"
        )
    return paths


def tables_of(
    paths: Sequence[Path], rows: Table, lists: Lists, numbers: NDArray[Any] | None = None
) -> Iterator[pa.Table]:
    """Yield rows of a table's files, with the columns by which the lists may name them."""
    columns = [name for name in (rows.url, rows.uid, rows.sample_id) if name]
    if rows.hashes and any(entries.names_images for _, entries in lists.each()):
        columns += ["sha256", "md5"]
    for _, table in read(paths, columns, numbers):
        yield table


def read(
    paths: Sequence[Path], columns: Sequence[str], numbers: NDArray[Any] | None = None
) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
    """Yield rows of a table's files and their numbers: of these numbers, or all."""
    return read_rows(paths, np.arange(rows_in(*paths)) if numbers is None else numbers, columns)


def sample_ids(table: pa.Table, rows: Table) -> Ids:
    if rows.sample_id:
        ids: Ids = table[rows.sample_id].to_numpy()
        return ids
    column = table[rows.uid]
    if column.type == pa.string():
        keys, _ = hex_keys(pc.utf8_slice_codeunits(column, 0, UID_BYTES), UID_BYTES // 2)
        return heads_of(keys.tobytes(), UID_BYTES // 2).view(np.int64)
    return halves(column)[0].view(np.int64)


def named(table: pa.Table, rows: Table, lists: Lists) -> NDArray[np.bool_]:
    """(n,) bool: the rows that a list names, by what this table knows of them."""
    mask = np.zeros(table.num_rows, dtype=np.bool_)
    for _, entries in lists.each():
        if rows.url and entries.names_urls:
            mask |= entries.which_urls(table[rows.url].to_pylist())
        if rows.hashes and entries.names_images:
            mask |= entries.which_images(table["sha256"], table["md5"])
        if entries.names_samples and (rows.uid or rows.sample_id):
            mask |= entries.which_samples(sample_ids(table, rows))
    return mask


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
        return any(named_rows(table, lists)[0] for _, table in read([path], LOOKED_AT))

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
    return bool(readable) and any(
        named(table, rows, lists).any() for table in tables_of([path], rows, lists)
    )
