"""The catalog's tables: the published partitions, their table files and counts, from manifests.

Only manifests of partitions that were replaced since the previous catalog are read; the rest is
copied from there. What does not belong here: the views over the files, and any row of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final

import duckdb

from laion_assets import tables
from laion_assets.lake import Lake, Manifest
from laion_assets.layout import PARTITIONS, SegmentKey, Table, partition_of

logger = logging.getLogger(__name__)

Row = tuple[Any, ...]

KEY: Final = "asset varchar, crawl varchar, segment varchar"
VERSIONS: Final = f"{KEY}, version varchar"
"""Columns of what :meth:`Lake.versions` says."""
TABLES: Final[Mapping[str, str]] = {
    "partitions": f"{VERSIONS}, run_id varchar, code_version varchar, data_version varchar, "
    "started timestamp, seconds double, bytes bigint, rows bigint, n_in bigint, kept bigint, "
    "metadata varchar",
    "files": f'{KEY}, "view" varchar, name varchar, bytes bigint, rows bigint, "columns" varchar',
    "counts": f"{KEY}, place int, stage varchar, reason varchar, n bigint",
}
"""Table -> its columns. ``rows`` of a partition are those of its first table, ``view`` of a file
is the one that shows it, ``columns`` are :func:`laion_assets.tables.describe`'s."""

LAYOUT: Final = hashlib.sha256(
    repr(
        [
            TABLES,
            [
                (partition.asset, table.files, table.view)
                for partition in PARTITIONS.values()
                for table in partition.tables
            ],
        ]
    ).encode()
).hexdigest()[:16]
"""Differs where the tables, or what they say of the same manifest, would."""

PLACE: Final = "asset || '/crawl=' || crawl || '/segment=' || segment || '/' || name"
"""SQL for the path, below the lake's root, of a row of `files`."""

_READ_AT_ONCE: Final = 64
"""Manifests that are in memory: one of many shards has a thousand files."""
_AT_ONCE: Final = 2_000
"""Manifests that are inserted by one statement."""
_SAME: Final = "using (asset, crawl, segment, version)"


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create :data:`TABLES` without a row."""
    for name, columns in TABLES.items():
        connection.execute(f"create table {name} ({columns})")


def insert(connection: duckdb.DuckDBPyConnection, table: str, rows: Sequence[Row]) -> None:
    """Add rows to a table. No Arrow: it would load pandas."""
    if rows:
        unnested = ", ".join(f"unnest(${number})" for number in range(1, len(rows[0]) + 1))
        connection.execute(
            f"insert into {table} select {unnested}",
            [list(column) for column in zip(*rows, strict=True)],
        )


def fill(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    assets: Iterable[str],
    previous: Path | None = None,
) -> None:
    """Create :data:`TABLES` in a database, for the published segments of assets.

    ``previous``: a catalog of the same lake, from which unchanged partitions are copied. A
    partition that is removed meanwhile is left out. One that is replaced meanwhile is described as
    it is then, and read again the next time.
    """
    connection.execute(f"create temp table now ({VERSIONS})")
    for asset in assets:
        versions = lake.versions(asset).items()
        insert(connection, "now", [(asset, k.crawl, k.segment, v) for k, v in versions if k])
    if previous:
        connection.execute(f"attach {quoted(str(previous))} as previous (read_only)")
        for name in TABLES:
            connection.execute(
                f"create table {name} as from previous.{name} semi join "
                f"(from previous.partitions semi join now {_SAME}) using (asset, crawl, segment)"
            )
        connection.execute("detach previous")
    else:
        create_tables(connection)
    changed = connection.execute(f"from now anti join partitions {_SAME} order by all").fetchall()
    logger.info(f"{len(changed):,} partitions are new or replaced")
    described = described_by(lake, changed)
    while some := list(islice(described, _AT_ONCE)):
        for name in TABLES:
            insert(connection, name, [row for rows in some for row in rows[name]])
    connection.execute("drop table now")


def described_by(lake: Lake, changed: Iterable[Row]) -> Iterator[dict[str, list[Row]]]:
    """What the manifests of partitions say, as rows of :data:`TABLES`.

    ``changed``: asset, crawl, segment and version of each. One that is removed meanwhile is left
    out.
    """
    for asset, of_asset in groupby(changed, lambda row: row[0]):
        versions = {SegmentKey(*names): version for _, *names, version in of_asset}
        keys = iter(versions)
        while some := list(islice(keys, _READ_AT_ONCE)):
            for key, manifest in lake.manifests(asset, some).items():
                assert key is not None
                try:
                    yield _described(lake, asset, manifest, key, versions[key])
                except FileNotFoundError as error:
                    logger.warning(f"left out until the next time, since it lacks a file: {error}")


def _described(
    lake: Lake, asset: str, manifest: Manifest, key: SegmentKey, version: str
) -> dict[str, list[Row]]:
    of = (asset, key.crawl, key.segment)
    files = list(_files(lake, asset, manifest, key))
    counts = [row for stage in manifest.counts for row in stage.rows()]
    last = manifest.counts[-1] if manifest.counts else None
    started = datetime.fromisoformat(manifest.started).astimezone(UTC).replace(tzinfo=None)
    first = partition_of(asset).rows.files
    partition = (
        version,
        manifest.run_id,
        manifest.code_version,
        manifest.data_version,
        started,
        manifest.seconds,
        manifest.bytes,
        sum(facts["rows"] for table, _, facts in files if table.files == first),
        last.n_in if last else None,
        last.kept if last else None,
        json.dumps(manifest.metadata, sort_keys=True, ensure_ascii=False),
    )
    return {
        "partitions": [(*of, *partition)],
        "files": [
            (*of, table.view, item["name"], item["bytes"], facts["rows"], facts["columns"])
            for table, item, facts in files
        ],
        "counts": [(*of, place, *row) for place, row in enumerate(counts)],
    }


def _files(
    lake: Lake, asset: str, manifest: Manifest, key: SegmentKey
) -> Iterator[tuple[Table, Mapping[str, Any], Mapping[str, Any]]]:
    """Each table file with its entry in the manifest, its rows and columns."""
    of = partition_of(asset).tables
    for item in manifest.files:
        for table in of:
            if fnmatchcase(item["name"], table.files):
                known = "rows" in item and "columns" in item
                folder = None if known else lake.folder(asset, key, item["name"])
                yield table, item, tables.describe(folder / item["name"]) if folder else item


HIVE: Final = "hive_partitioning = true, hive_types = {'crawl': varchar, 'segment': varchar}"
"""Arguments of `read_parquet` for the lake's files: a segment stays text, since 00 would be 0."""


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"
