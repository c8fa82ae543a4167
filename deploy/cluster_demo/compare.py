"""Comparison of two lakes' datasets; a pair that segments share may be in either of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from laion_assets.lake import Lake
from laion_assets.tables import read_parquet

_ROWS: Final[Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    # asset: files, columns that identify a row, other columns that must be the same
    "pair_parquet": ("part-*.parquet", ("crawl", "segment", "uid"), ("url", "text", "language")),
    "unique_pairs": ("part-*.parquet", ("uid",), ("url", "text", "language")),
    "image_shards": (
        "part-*.parquet",
        ("url", "caption"),
        ("status", "sha256", "original_width", "original_height"),
    ),
    "scored_pairs": ("part-*.parquet", ("SAMPLE_ID",), ("sha256", "nsfw")),
    "filtered_subset": (
        "part-*.parquet",
        ("SAMPLE_ID",),
        ("URL", "TEXT", "HEIGHT", "WIDTH", "NSFW", "sha256", "md5"),
    ),
    "knn_index": ("ids.parquet", ("SAMPLE_ID",), ()),
}
_SIMILARITY: Final = {"scored_pairs", "filtered_subset"}
_CLOSE: Final = 1e-3
"""Tolerance of a sample's similarity: the size of a batch changes the last bits of a float."""


@dataclass(frozen=True)
class Content:
    """A lake's content of one asset."""

    partitions: int
    rows: int
    doubled: int
    """Number of rows that occur more than once."""
    digest: str
    similarities: Mapping[Any, float]


def content(lake: Lake, asset: str) -> Content:
    """Read an asset's rows from all its partitions."""
    files, keys, values = _ROWS[asset]
    rows: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    similarities: dict[Any, float] = {}
    n = 0
    partitions = lake.segments(asset)
    for table in _tables(lake, asset, files):
        has_similarity = asset in _SIMILARITY
        for row in table.to_pylist():
            n += 1
            key = tuple(row[name] for name in keys)
            rows[key] = tuple(row[name] for name in values)
            if has_similarity:
                similarities[key] = row["similarity"]
    digest = hashlib.sha256(repr(sorted(rows.items(), key=repr)).encode()).hexdigest()
    return Content(len(partitions), n, n - len(rows), digest[:12], similarities)


def _tables(lake: Lake, asset: str, files: str) -> Iterator[pa.Table]:
    for key in lake.segments(asset):
        for path in sorted(lake.folder(asset, key, "*.parquet").glob(files)):
            yield read_parquet(path)


def compare(left: Lake, right: Lake) -> tuple[list[list[str]], list[str]]:
    """Compare two lakes.

    Returns the rows of a table (asset, partitions, rows, doubled, digests) and the differences.
    """
    table, faults = [], []
    for asset in _ROWS:
        one, other = content(left, asset), content(right, asset)
        same = one.digest == other.digest and one.rows == other.rows
        if not same:
            faults.append(f"{asset}: {one.rows} rows {one.digest}, not {other.rows} {other.digest}")
        if one.partitions != other.partitions:
            faults.append(f"{asset}: {one.partitions} partitions, not {other.partitions}")
        if one.doubled:
            faults.append(f"{asset}: {one.doubled} rows are doubled")
        apart = [
            key
            for key, similarity in one.similarities.items()
            if abs(similarity - other.similarities.get(key, 9.0)) > _CLOSE
        ]
        if apart:
            faults.append(f"{asset}: {len(apart)} similarities differ by more than {_CLOSE}")
        table.append(
            [asset, str(one.partitions), str(one.rows), str(one.doubled), one.digest, other.digest]
        )
    indexed = [lake.manifest("search_index").metadata["n"] for lake in (left, right)]
    if indexed[0] != indexed[1]:
        faults.append(f"search_index: {indexed[0]} samples, not {indexed[1]}")
    return table, faults
