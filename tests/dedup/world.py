"""A ledger with its segments: pairs are numbers, and publishing is moving a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets import schemas
from laion_assets.dedup import ledger as module
from laion_assets.dedup.ledger import claiming, release_segment
from laion_assets.dedup.state import State
from laion_assets.dedup.upkeep import opened
from laion_assets.funnel import StageCounts
from laion_assets.layout import SegmentKey
from laion_assets.removals.entries import Entries
from laion_assets.tables import part_path, read_parquet

CRAWL = "CC-MAIN-2021-04"
NONE = Entries()


def url_of(number: int) -> str:
    return f"http://h{number % 7}.example/{number}.jpg"


def uid(number: int) -> bytes:
    return schemas.uid_of(url_of(number), f"text {number}")


def table_of(rows: Sequence[int], crawl: str, segment: str) -> pa.Table:
    """The pairs of these numbers, as a segment has them."""
    columns: dict[str, list[object]] = {
        "uid": [uid(row) for row in rows],
        "url": [url_of(row) for row in rows],
        "text": [f"text {row}" for row in rows],
        "language_score": [0.9] * len(rows),
        "crawl": [crawl] * len(rows),
    }
    return pa.table(
        [
            pa.array(columns.get(field.name, [segment] * len(rows)), field.type)
            for field in schemas.PAIRS
        ],
        schema=schemas.PAIRS,
    )


class World:
    """A ledger, and segments given as the numbers of their pairs, part by part."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger = root / "ledger"
        self.published = root / "published"

    def pairs(self, segment: str, parts: Sequence[Sequence[int]]) -> Path:
        folder = self.root / "pairs" / segment
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, rows in enumerate(parts):
            table = table_of(rows, CRAWL, segment)
            pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=4)
        return folder

    def claim(
        self,
        segment: str,
        removals: Entries = NONE,
        blocklists: Entries = NONE,
        *,
        crawl: str = CRAWL,
        stop: str = "",
        meanwhile: Callable[[], None] | None = None,
    ) -> StageCounts:
        """Claim and publish; ``stop`` raises "before" or "after" publishing.

        ``meanwhile`` is called when the pairs have been compared and the ledger is to be locked.
        """
        patch = pytest.MonkeyPatch()
        if meanwhile is not None:

            def opened_late(ledger: Path, partitions: Path) -> AbstractContextManager[State]:
                patch.undo()
                meanwhile()
                return opened(ledger, partitions)

            patch.setattr(module, "opened", opened_late)
        key = SegmentKey(crawl, segment)
        target = self.published / key.hive
        staging = self.root / f"staging-{crawl}-{segment}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        with claiming(self.ledger, self.published, key) as claims:
            counts = claims.write(
                self.root / "pairs" / segment, staging, removals=removals, blocklists=blocklists
            )
            assert counts.adds_up
            if stop == "before":
                raise StoppedError
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            staging.rename(target)
            if stop == "after":
                raise StoppedError
        return counts

    def release(self, segment: str) -> None:
        release_segment(self.ledger, self.published, SegmentKey(CRAWL, segment))

    def folder(self, segment: str) -> Path:
        return self.published / SegmentKey(CRAWL, segment).hive

    def kept(self, segment: str) -> list[int]:
        """The numbers of the published pairs, in their order."""
        *parts, last = sorted(
            self.folder(segment).iterdir(), key=lambda p: (p.suffix != ".parquet", p)
        )
        assert last.name == "_claims.json"
        assert parts == [part_path(self.folder(segment), i) for i in range(len(parts))]
        tables = [read_parquet(part, schemas.PAIRS.names) for part in parts]
        assert all(table.schema == schemas.PAIRS for table in tables)
        return [int(text.split()[1]) for table in tables for text in table["text"].to_pylist()]


class StoppedError(Exception):
    pass
