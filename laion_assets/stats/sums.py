"""The catalog's table `sums`: all segments' statistics, added up by crawl.

Only what changed since the previous catalog is read: the new segments' statistics or, where a
segment was replaced, those of its crawl. What does not belong here: what is measured
(:mod:`laion_assets.stats.segment`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import duckdb

from laion_assets.lake import Lake
from laion_assets.layout import PARTITIONS, SEGMENT_STATS, SegmentKey
from laion_assets.stats.near import AROUND, NEAREST
from laion_assets.stats.partitions import HIVE, quoted

logger = logging.getLogger(__name__)

TABLE: Final = "sums"
COLUMNS: Final = {
    "crawl": "varchar",
    "segment": "varchar",
    "kind": "varchar",
    "stage": "varchar",
    "metric": "varchar",
    "bin_low": "double",
    "bin_high": "double",
    "value": "varchar",
    "n": "bigint",
}
"""``segment`` is null for sums over a crawl: of histograms and top values. Of the pairs nearest to
the threshold, a crawl keeps as many as are shown of all."""

_MEASURED: Final = f"partitions where asset = '{SEGMENT_STATS}'"
_GROUPED: Final = ", ".join(name for name in COLUMNS if name != "n")
_FROM_FILES: Final = (
    "select * replace (if(kind in ('histogram', 'top'), null, segment) as segment) from "
    f"read_parquet($files, {HIVE})"
)
_NEAREST_OF_CRAWL: Final = (
    f"qualify kind <> '{NEAREST}' or row_number() over (partition by crawl, kind, metric "
    f"order by if(metric = 'above', bin_low, -bin_low), segment) <= {AROUND}"
)


def fill_sums(
    connection: duckdb.DuckDBPyConnection, lake: Lake, previous: Path | None = None
) -> None:
    """Create the table in a catalog whose partitions are known.

    ``previous``: an earlier catalog of the same lake, for the sums of what did not change.
    """

    def keys(sql: str) -> set[tuple[Any, ...]]:
        return set(connection.execute(sql).fetchall())

    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    connection.execute(f"create table {TABLE} ({columns})")
    now = keys(f"select crawl, segment, version from {_MEASURED}")
    summed: set[tuple[Any, ...]] = set()
    if previous:
        connection.execute(f"attach {quoted(str(previous))} as before (read_only)")
        if _has_sums(connection):
            summed = keys(f"select crawl, segment, version from before.{_MEASURED}")
    # Nothing can be taken from a sum: the crawl of what is gone is added up again.
    spoilt = {crawl for crawl, _, _ in summed - now}
    to_read: dict[str, list[SegmentKey]] = {crawl: [] for crawl in spoilt}
    for crawl, segment, version in sorted(now):
        if crawl in spoilt or (crawl, segment, version) not in summed:
            to_read.setdefault(crawl, []).append(SegmentKey(crawl, segment))
    n = sum(map(len, to_read.values()))
    logger.info(f"adding up the statistics of {n:,} of {len(now):,} segments")
    if summed:
        connection.execute(
            f"insert into {TABLE} from before.{TABLE} where crawl not in (from unnest($1::text[]))",
            [list(to_read)],
        )
    for crawl, segments in sorted(to_read.items()):
        _add_up(connection, lake, crawl, segments, bool(summed) and crawl not in spoilt)
    if previous:
        connection.execute("detach before")


def _add_up(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    crawl: str,
    segments: Sequence[SegmentKey],
    to_before: bool,
) -> None:
    """Insert the sums of a crawl: of these segments, and of its others in the earlier catalog."""
    name = PARTITIONS[SEGMENT_STATS].rows.files
    folders = lake.map(lambda key: lake.folder(SEGMENT_STATS, key, name), segments)
    files = [str(folder / name) for folder in folders]
    sources: dict[str, dict[str, Any]] = {}
    if to_before:
        sources[f"from before.{TABLE} where crawl = $crawl"] = {"crawl": crawl}
    if files:
        sources[_FROM_FILES] = {"files": files}
    if sources:
        connection.execute(
            f"insert into {TABLE} select {_GROUPED}, cast(sum(n) as bigint) "
            f"from ({' union all by name '.join(f'({sql})' for sql in sources)}) "
            f"group by {_GROUPED} {_NEAREST_OF_CRAWL}",
            {name: value for values in sources.values() for name, value in values.items()},
        )


def _has_sums(connection: duckdb.DuckDBPyConnection) -> bool:
    columns = connection.execute(
        "select column_name from duckdb_columns() where database_name = 'before' "
        f"and table_name = '{TABLE}' order by column_index"
    ).fetchall()
    return columns == [(name,) for name in COLUMNS]
