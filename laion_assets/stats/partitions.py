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
from itertools import islice
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa

from laion_assets import tables
from laion_assets.lake import Lake, Manifest, NotPublishedError
from laion_assets.layout import PARTITIONS, SegmentKey, Table, partition_of

logger = logging.getLogger(__name__)

Row = tuple[Any, ...]

_KEY: Final = (("asset", pa.string()), ("crawl", pa.string()), ("segment", pa.string()))
VERSIONS: Final = pa.schema([*_KEY, ("version", pa.string())])
"""What :meth:`Lake.versions` says, for many assets."""
TABLES: Final[Mapping[str, pa.Schema]] = {
    "partitions": pa.schema(
        [
            *VERSIONS,
            ("run_id", pa.string()),
            ("code_version", pa.string()),
            ("data_version", pa.string()),
            ("started", pa.timestamp("us")),
            ("seconds", pa.float64()),
            ("bytes", pa.int64()),
            ("rows", pa.int64()),
            ("n_in", pa.int64()),
            ("kept", pa.int64()),
            ("metadata", pa.string()),
        ]
    ),
    "files": pa.schema(
        [
            *_KEY,
            ("view", pa.string()),
            ("name", pa.string()),
            ("bytes", pa.int64()),
            ("rows", pa.int64()),
            ("columns", pa.string()),
        ]
    ),
    "counts": pa.schema(
        [
            *_KEY,
            ("place", pa.int32()),
            ("stage", pa.string()),
            ("reason", pa.string()),
            ("n", pa.int64()),
        ]
    ),
}
"""Table -> its columns. ``rows`` of a partition are those of its first table, ``view`` of a file
is the one that shows it, ``columns`` are :func:`laion_assets.tables.describe`'s."""

LAYOUT: Final = hashlib.sha256(
    repr(
        [
            [(name, str(schema)) for name, schema in TABLES.items()],
            [
                (partition.asset, table.files, table.view)
                for partition in PARTITIONS.values()
                for table in partition.tables
            ],
        ]
    ).encode()
).hexdigest()[:16]
"""Differs where the tables, or what they say of the same manifest, would."""

_AT_ONCE: Final = 2_000
"""Manifests in memory."""
_SAME: Final = "using (asset, crawl, segment, version)"


def versions(lake: Lake, assets: Iterable[str]) -> pa.Table:
    """Return :data:`VERSIONS` of the assets' published segments."""
    return _table(
        VERSIONS,
        [
            (asset, key.crawl, key.segment, version)
            for asset in assets
            for key, version in lake.versions(asset).items()
            if key
        ],
    )


def create_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """Create :data:`TABLES` without a row."""
    for name, schema in TABLES.items():
        connection.register("empty", schema.empty_table())
        connection.execute(f"create table {name} as from empty")


def fill(
    connection: duckdb.DuckDBPyConnection, lake: Lake, now: pa.Table, previous: Path | None
) -> None:
    """Create :data:`TABLES` in a database, for the partitions ``now``, :data:`VERSIONS`.

    ``previous``: a catalog of the same lake, from which unchanged partitions are copied. A
    partition that is removed meanwhile is left out. One that is replaced meanwhile is described as
    it is then, and read again the next time.
    """
    connection.register("now", now)
    if previous:
        connection.execute(f"attach {quoted(str(previous))} as previous (read_only)")
    for name, schema in TABLES.items():
        connection.register("empty", schema.empty_table())
        old = (
            f"from previous.{name} semi join (from previous.partitions semi join now {_SAME}) "
            "using (asset, crawl, segment)"
        )
        connection.execute(f"create temp table {name}_ as {old if previous else 'from empty'}")
    changed = connection.execute(f"from now anti join partitions_ {_SAME} order by all").fetchall()
    logger.info(f"{len(changed):,} of {now.num_rows:,} partitions are new or replaced")
    manifests = _manifests(lake, changed)
    while some := list(islice(manifests, _AT_ONCE)):
        for name, schema in TABLES.items():
            rows = _table(schema, [row for described in some for row in described[name]])
            connection.register("rows_read", rows)
            connection.execute(f"insert into {name}_ from rows_read")
    for name in TABLES:
        order = "crawl, segment, asset" + {"files": ", name", "counts": ", place"}.get(name, "")
        connection.execute(f"create table {name} as from {name}_ order by {order}")
        connection.execute(f"drop table {name}_")
    if previous:
        connection.execute("detach previous")


def describe(lake: Lake, asset: str, key: SegmentKey, version: str) -> dict[str, list[Row]]:
    """Return what a partition's manifest says, as rows of :data:`TABLES`.

    Raises :class:`~laion_assets.lake.NotPublishedError` if there is no such partition.
    """
    manifest = lake.manifest(asset, key)
    of = (asset, key.crawl, key.segment)
    files = list(_files(lake, manifest, key))
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


def _manifests(lake: Lake, changed: Iterable[Row]) -> Iterator[dict[str, list[Row]]]:
    for asset, crawl, segment, version in changed:
        try:
            yield describe(lake, asset, SegmentKey(crawl, segment), version)
        except (NotPublishedError, FileNotFoundError) as error:
            logger.warning(f"left out until the next time, since it was removed: {error}")


def _files(
    lake: Lake, manifest: Manifest, key: SegmentKey
) -> Iterator[tuple[Table, Mapping[str, Any], Mapping[str, Any]]]:
    """Each table file with its entry in the manifest, its rows and columns."""
    of = partition_of(manifest.asset).tables
    for item in manifest.files:
        for table in of:
            if fnmatchcase(item["name"], table.files):
                known = "rows" in item and "columns" in item
                folder = None if known else lake.folder(manifest.asset, key, item["name"])
                yield table, item, tables.describe(folder / item["name"]) if folder else item


def _table(schema: pa.Schema, rows: Sequence[Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def quoted(text: str) -> str:
    """A text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"
