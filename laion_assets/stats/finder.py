"""Finds the pairs that a question is about, in whichever partitions of a lake have them.

By look-up, and row by row in the few partitions that cannot be searched so. What became of a pair
does not belong here (:mod:`.why`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import duckdb

from laion_assets.lake import LocalLake
from laion_assets.layout import (
    IMAGE_SHARDS,
    PAIR_PARQUET,
    UNIQUE_PAIRS,
    SegmentKey,
    partition_of,
)
from laion_assets.lookup.files import Rows
from laion_assets.lookup.find import Partitions
from laion_assets.lookup.rows import read_rows
from laion_assets.stats.question import Question, columns_of


class Finder:
    """The partitions of a lake, as they were when it was made."""

    def __init__(self, lake: LocalLake, connection: duckdb.DuckDBPyConnection) -> None:
        self._lake, self.connection = lake, connection
        self._partitions = Partitions(lake)
        self.scanned: list[str] = []
        """Partitions that :meth:`find` searched row by row."""

    def find(self, question: Question) -> list[tuple[SegmentKey, str, str]]:
        """``(segment, url, text)`` of each matching pair in any partition of any asset."""
        found: set[tuple[SegmentKey, str, str]] = set()
        scanned: dict[str, set[SegmentKey]] = {}
        for key, assets in self._partitions.scanned.items():
            for asset in assets:
                scanned.setdefault(asset, set()).add(key)
        for asset in (PAIR_PARQUET, IMAGE_SHARDS):
            held, without = self._partitions.candidates(asset, question.sought(asset))
            scanned.setdefault(asset, set()).update(without)
            for key, numbers in held.items():
                found.update(self._candidates(asset, key, numbers, question))
        for asset, keys in scanned.items():
            found.update(self._scan(asset, sorted(keys), question))
        return sorted(found)

    def _candidates(
        self, asset: str, key: SegmentKey, numbers: Rows, question: Question
    ) -> Iterator[tuple[SegmentKey, str, str]]:
        """The matching pairs among some rows of a partition."""
        table = partition_of(asset).rows
        columns = columns_of(table)
        condition = question.where(columns)
        assert condition is not None, f"{asset} was looked up for what it does not have"
        names = [name for name in (table.url, table.text, table.uid) if name]
        paths = table.paths(self._lake.folder(asset, key))
        for _, rows in read_rows(paths, numbers, [*names, *question.hashes]):
            self.connection.register("candidates", rows)
            select = f"select {columns['url']}, {columns['text']} from candidates where "
            for url, text in self.connection.execute(
                select + condition[0], condition[1]
            ).fetchall():
                yield key, url, text or ""

    def _scan(
        self, asset: str, keys: Sequence[SegmentKey], question: Question
    ) -> Iterator[tuple[SegmentKey, str, str]]:
        """The matching pairs among all rows of some partitions."""
        table = partition_of(asset).rows
        if not (table.url and table.text):
            return
        columns = columns_of(table)
        condition = question.where(columns)
        key_of = self._files(asset, keys)
        if condition is None or not key_of:
            return
        self.scanned += [f"{asset} of {key}" for key in keys]
        where, values = condition
        rows = self.connection.execute(
            f"select distinct filename, {columns['url']}, {columns['text']} "
            f"from read_parquet(?, filename = true, hive_partitioning = false) where {where}",
            [list(key_of), *values],
        ).fetchall()
        yield from ((key_of[filename], url, text or "") for filename, url, text in rows)

    def holders(self, uid: bytes) -> list[SegmentKey]:
        """Segments whose unique pairs have the uid."""
        sought = Question("", uid=uid).sought(PAIR_PARQUET)
        held, without = self._partitions.candidates(PAIR_PARQUET, sought)
        key_of = self._files(UNIQUE_PAIRS, {*held, *without, *self._partitions.scanned})
        if not key_of:
            return []
        rows = self.connection.execute(
            "select distinct filename from read_parquet("
            "?, filename = true, hive_partitioning = false) where uid = ?",
            [list(key_of), uid],
        ).fetchall()
        return sorted(key_of[filename] for (filename,) in rows)

    def _files(self, asset: str, keys: Collection[SegmentKey]) -> dict[str, SegmentKey]:
        """Files of an asset's partitions, and the segment of each."""
        return {
            str(path): key
            for key in keys
            for path in partition_of(asset).rows.paths(self._lake.folder(asset, key))
        }
