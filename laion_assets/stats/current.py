"""The partitions that a question reads, as they are now, and as they stay while it reads them.

The catalog knows them as they were when it was built. What was published since is read from its
manifest, so that a question sees the lake as it is.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import duckdb

from laion_assets.files import hard_link, open_files
from laion_assets.lake import MANIFEST, Lake, LocalLake
from laion_assets.layout import SegmentKey, partition_of, place_of
from laion_assets.stats.partitions import PLACE, VERSIONS, described_by, insert, quoted
from laion_assets.stats.statement import NAMES, ROWS, Reading

SNAPSHOTS: Final = ".snapshots"
"""Folder, in the lake, of hard links to what is read while it is being replaced."""
_OLD_S: Final = 86_400.0
"""Snapshots of this age belong to killed processes."""
_IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - for a folder of a name that none has
_OTHER_FILES: Final = 500
"""Files that a process has open beside those that it holds."""

Partition = tuple[str, SegmentKey]
"""Asset and key."""


@dataclass(frozen=True)
class Current:
    """The version of each partition whose files a question reads."""

    lake: Lake
    versions: Mapping[Partition, str]
    unknown: frozenset[Partition] = frozenset()
    """Partitions that the catalog does not know in this version."""

    @property
    def is_current(self) -> bool:
        """Whether none was replaced or removed since. New ones are seen whole or not at all."""
        keys: dict[str, list[SegmentKey]] = {}
        for asset, key in self.versions:
            keys.setdefault(asset, []).append(key)
        return self.versions == _versions(self.lake, keys)

    @contextmanager
    def snapshot(
        self, lake: LocalLake, files: Mapping[Partition, Sequence[str]]
    ) -> Iterator[Current]:
        """These partitions, each as it is when the snapshot is made, in a folder of links.

        ``files``: the names of theirs that the question reads, as :func:`files_of` has them. The
        process holds their files open, so that they outlive their names. Where it may not have
        so many open, they are hard links in the lake. Raises ``OSError`` if that is refused.
        """
        n = sum(map(len, files.values())) + _OTHER_FILES
        with ExitStack() as stack:
            if open_files(n) >= n:
                memory = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
                folder = TemporaryDirectory(prefix="laion-assets-held-", dir=memory)
                linked, link = LocalLake.at(Path(stack.enter_context(folder))), _holding(stack)
            else:
                linked, link = LocalLake.at(stack.enter_context(_below(lake.root))), hard_link
            found = {
                partition: version
                for partition in self.versions
                if (version := self._link(lake, partition, files.get(partition, ()), linked, link))
            }
            unknown = self.unknown | {p for p, v in found.items() if self.versions[p] != v}
            yield replace(self, lake=linked, versions=found, unknown=unknown & found.keys())

    def _link(
        self,
        lake: LocalLake,
        partition: Partition,
        files: Sequence[str],
        linked: LocalLake,
        link: Callable[[Path, Path], None],
    ) -> str | None:
        """Link one version of a partition, and return it; None if the partition was removed.

        Its manifest is copied where the catalog does not know it.
        """
        place = place_of(*partition)
        folder, to = lake.root / place, linked.root / place
        while version := lake.version(*partition):
            to.mkdir(parents=True)
            with suppress(FileNotFoundError):  # it has just been replaced
                names = files
                if version != self.versions[partition] or partition in self.unknown:
                    shutil.copyfile(folder / MANIFEST, to / MANIFEST)
                    names = _table_files(partition[0], folder)
                for name in names:
                    (to / name).parent.mkdir(exist_ok=True)
                    link(folder / name, to / name)
                if version == lake.version(*partition):
                    return version
            shutil.rmtree(to)
        return None


def _table_files(asset: str, folder: Path) -> list[str]:
    tables = [table for table in partition_of(asset).tables if table.view]
    return [str(path.relative_to(folder)) for table in tables for path in table.paths(folder)]


def _holding(stack: ExitStack) -> Callable[[Path, Path], None]:
    """A way to link files, which are held open until the stack is left."""
    process = os.getpid()

    def hold(path: Path, target: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        stack.callback(os.close, handle)
        target.symlink_to(f"/proc/{process}/fd/{handle}")

    return hold


@contextmanager
def _below(root: Path) -> Iterator[Path]:
    """A new folder in the lake, deleted behind the block, and what killed processes left."""
    snapshots = root / SNAPSHOTS
    snapshots.mkdir(exist_ok=True)
    for left in snapshots.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _OLD_S:
                shutil.rmtree(left, ignore_errors=True)
    folder = snapshots / uuid.uuid4().hex
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _versions(lake: Lake, keys: Mapping[str, Iterable[SegmentKey]]) -> dict[Partition, str]:
    return {
        (asset, key): version
        for asset, of_asset in keys.items()
        for key, version in lake.versions(asset, of_asset).items()
        if key
    }


def look(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    reading: Reading,
    assets: Mapping[str, str],
) -> Current:
    """Have a catalog's views show the files of ``lake`` that a question reads, and return which.

    ``assets``: the asset of each view. Raises ``duckdb.Error`` if a condition on crawl or segment
    cannot be evaluated.
    """
    queries: dict[str, list[list[str] | None]] = {}
    for view, of_view in (*reading.views.items(), *reading.counts.items()):
        queries.setdefault(assets[view], []).append(of_view)
    keys = {
        asset: _keys(connection, lake, asset, of_asset, reading)
        for asset, of_asset in queries.items()
    }
    versions = _versions(lake, keys)
    unknown = show(connection, Current(lake, versions), reading)
    if reading.first is not None:
        (view,) = reading.views
        sql = 'select coalesce(sum("rows"), 0) from _files where "view" = ?'
        if connection.execute(sql, [view]).fetchall() < [(reading.first,)]:
            # The catalog is too old to say how far the rows reach.
            return look(connection, lake, replace(reading, first=None), assets)
    read = {assets[view] for view in reading.views}
    return Current(lake, {p: v for p, v in versions.items() if p[0] in read}, frozenset(unknown))


def show(
    connection: duckdb.DuckDBPyConnection, current: Current, reading: Reading
) -> set[Partition]:
    """Have a catalog's views show these partitions, below what the variable `lake` says.

    Returns those that the catalog does not know; they are described by their manifests.
    """
    if not reading.views and not reading.counts:
        return set()  # Without what is made here, SHOW TABLES shows the catalog's own.
    connection.execute(f"create or replace temp table _versions ({VERSIONS})")
    insert(
        connection,
        "_versions",
        [(asset, key.crawl, key.segment, v) for (asset, key), v in current.versions.items()],
    )
    same = "using (asset, crawl, segment, version)"
    connection.execute(
        "create or replace temp table _files as from files semi join "
        f"(from partitions semi join _versions {same}) using (asset, crawl, segment)"
    )
    changed = connection.execute(
        f"from _versions anti join partitions {same} order by all"
    ).fetchall()
    for described in described_by(current.lake, changed):
        insert(connection, "_files", described["files"])
    for view in reading.views:
        of_view = f'from _files where "view" = {quoted(view)}'
        connection.execute(
            f"set variable {view}_files = (select list(getvariable('lake') || '/' || {PLACE} "
            f"order by crawl, segment, name) {of_view})"
        )
        connection.execute(
            f'set variable {view}_mixed = (select min("columns") <> max("columns") {of_view})'
        )
    for view in reading.counts:
        connection.execute(
            f'create temp view {ROWS}{view} as select crawl, segment, sum("rows") as "rows" '
            f'from _files where "view" = {quoted(view)} group by all having sum("rows") > 0'
        )
    return {(asset, SegmentKey(*names)) for asset, *names, _ in changed}


def files_of(connection: duckdb.DuckDBPyConnection, reading: Reading) -> dict[Partition, list[str]]:
    """Return the names of the files that a question's views show, by their partition."""
    files: dict[Partition, list[str]] = {}
    for view in reading.views:
        sql = 'select asset, crawl, segment, name from _files where "view" = ?'
        for asset, crawl, segment, name in connection.execute(sql, [view]).fetchall():
            files.setdefault((asset, SegmentKey(crawl, segment)), []).append(name)
    return files


def _keys(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    asset: str,
    queries: Sequence[list[str] | None],
    reading: Reading,
) -> list[SegmentKey]:
    """The segments that any of a question's views of an asset reads, published or not."""
    names = lake.names(asset)
    if None not in queries:
        connection.execute(f"create or replace temp table {NAMES} (crawl varchar, segment varchar)")
        insert(connection, NAMES, names)
        either = " union ".join(f"({query})" for of_view in queries for query in of_view or ())
        # Where none is read, the view still needs a file to have its columns from.
        names = connection.execute(either).fetchall() or names
    if reading.first is not None:
        (view,) = reading.views
        names = _beginning(connection, view, sorted(names), reading.first)
    return [SegmentKey(*key) for key in names]


def _beginning(
    connection: duckdb.DuckDBPyConnection, view: str, names: list[tuple[str, str]], first: int
) -> list[tuple[str, str]]:
    """The partitions that have a view's first rows, as far as the catalog knows."""
    sql = 'select crawl, segment, sum("rows") from files where "view" = ? group by all'
    rows = {(crawl, segment): n for crawl, segment, n in connection.execute(sql, [view]).fetchall()}
    ends = accumulate(rows.get(name, 0) for name in names)
    return names[: 1 + next((place for place, end in enumerate(ends) if end >= first), len(names))]
