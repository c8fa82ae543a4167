"""`catalog.duckdb`: tables of the lake's partitions, views over its parquet, macros over both, and
restricted queries.

The views name the lake by the absolute path it had when the catalog was built, so that any DuckDB
can open the file from anywhere. A lake that was moved is read after `SET VARIABLE lake = '…'`;
:func:`query` does so itself for a catalog that lies in the lake.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb
import pyarrow as pa

from laion_assets import schemas
from laion_assets.files import atomic_path
from laion_assets.funnel import REASONS
from laion_assets.lake import Lake, LocalLake
from laion_assets.layout import (
    CATALOG,
    EVERY_HIVE,
    PARTITIONS,
    SUBSET_PREFIX,
    Partition,
    partition_of,
    unqueryable,
    with_subsets,
)
from laion_assets.stats.partitions import LAYOUT, create_tables, fill, quoted, versions

logger = logging.getLogger(__name__)

T = TypeVar("T")

_KEY: Final = pa.schema([("crawl", pa.string()), ("segment", pa.string())])


class QueryError(ValueError):
    """The SQL is not one query that reads, or DuckDB refused it; the message says why."""


@dataclass(frozen=True)
class _View:
    asset: str
    files: str
    columns: pa.Schema
    open_ended: bool = False


def _with_key(schema: pa.Schema) -> pa.Schema:
    return pa.schema([*(field for field in _KEY if field.name not in schema.names), *schema])


def _views(partition: Partition) -> dict[str, _View]:
    """The catalog's views of an asset's tables, by name; crawl and segment are in the path."""
    return {
        table.view: _View(
            partition.asset,
            table.files,
            _with_key(table.schema),
            open_ended=table.schema.equals(schemas.IMAGES),
        )
        for table in partition.tables
        if table.view
    }


_STAGES: Final[Mapping[str, _View]] = {
    name: view for partition in PARTITIONS.values() for name, view in _views(partition).items()
}

_TRIES: Final = 5
_READABLE_BY: Final = "v1.2.0"
"""The oldest DuckDB that can open the catalog. A team's shells and notebooks lag behind ours."""

_MACROS: Final = Path(__file__).with_name("macros.sql")

_LAION400M: Final = (
    ("all", "Unique samples", 413_000_000),
    ("either_1024", "Width or height ≥ 1,024", 26_000_000),
    ("both_1024", "Width and height ≥ 1,024", 9_600_000),
    ("either_512", "Width or height ≥ 512", 112_000_000),
    ("both_512", "Width and height ≥ 512", 67_000_000),
    ("either_256", "Width or height ≥ 256", 268_000_000),
    ("both_256", "Width and height ≥ 256", 211_000_000),
)
"""Samples with one side or both sides of at least so many pixels: arXiv 2111.02114, table 1."""

_DERIVED: Final[Mapping[str, str]] = {
    # The stages of a further subset have the names of the main one's.
    "funnel_by_segment": (
        "select crawl, segment, stage, reason, n from counts "
        f"where not starts_with(asset, {quoted(SUBSET_PREFIX)})"
    ),
    "funnel": (
        "select stage, reason, cast(sum(n) as bigint) as n from funnel_by_segment group by all"
    ),
    "rejects": "from funnel_by_segment where reason not in ('in', 'kept')",
    "runs": (
        "select crawl, segment, asset, run_id, code_version, started, seconds, bytes, n_in, kept, "
        "metadata from partitions"
    ),
    "stats": (
        "select crawl, segment, stage, metric, bin_low, bin_high, n from statistics "
        "where kind = 'histogram'"
    ),
    "top": "select crawl, segment, stage, metric, value, n from statistics where kind = 'top'",
}
_COUNTED: Final = ("funnel_by_segment", "funnel", "rejects", "runs")
"""Those whose rows are in the catalog itself."""


def build_catalog(
    lake: Lake | Path, out: Path, subsets: Sequence[str] = (), previous: Path | None = None
) -> dict[str, Any]:
    """Publish the catalog of a lake as the file ``out``; return its summary.

    ``subsets`` names the assets of further subsets; each gets a view of its name. ``previous``: an
    earlier catalog of the lake, which is read and left as it is; what it knows of unchanged
    partitions is taken over. The summary has ``partitions`` (how many), ``views`` (their rows) and
    ``made_of`` (a digest of all partitions' data versions). Raises ``ValueError`` if the lake's
    path has characters that DuckDB would take for a pattern or key.
    """
    lake = lake if isinstance(lake, Lake) else LocalLake.at(lake)
    root = lake.local_root.absolute()
    _refuse_pattern(root)
    stages = dict(_STAGES)
    for name in subsets:
        stages |= _views(partition_of(name))
    now = versions(lake, with_subsets(subsets))
    with (
        atomic_path(out) as beside,
        duckdb.connect(
            str(beside), config={"storage_compatibility_version": _READABLE_BY}
        ) as connection,
    ):
        fill(connection, lake, now, previous if previous and _is_usable(previous) else None)
        connection.execute(
            "create table lake as select $root as root, $layout as layout",
            {"root": str(root), "layout": LAYOUT},
        )
        _define(connection, root, stages)
        rows = dict.fromkeys(stages, 0) | dict(
            connection.execute(
                'select "view", cast(sum("rows") as bigint) from files '
                'where "view" is not null group by all'
            ).fetchall()
        )
        rows |= {name: _count(connection, name) for name in _COUNTED}
        ((made_of,),) = connection.execute(
            "select md5(coalesce(string_agg(data_version, ' ' order by asset, crawl, segment), ''))"
            " from partitions"
        ).fetchall()
        connection.execute("checkpoint")
    return {"partitions": now.num_rows, "views": rows, "made_of": made_of}


def _is_usable(previous: Path) -> bool:
    """Whether a catalog's tables are those that this code makes."""
    try:
        with duckdb.connect(str(previous), read_only=True) as connection:
            return connection.execute("select layout from lake").fetchall() == [(LAYOUT,)]
    except duckdb.Error as error:
        logger.info(f"{previous} is not taken over: {error}")
        return False


def _refuse_pattern(root: Path) -> None:
    if unqueryable(root):
        raise ValueError(
            f"the lake's path {root} has one of the characters * ? [ =, which cannot be in a view's"
            " path: rename the folder"
        )


def _define(connection: duckdb.DuckDBPyConnection, root: Path, stages: Mapping[str, _View]) -> None:
    """Create the views and macros over :data:`~laion_assets.stats.partitions.TABLES`."""
    columns: dict[str, list[set[str]]] = {}
    for name, text in connection.execute('select distinct "view", "columns" from files').fetchall():
        columns.setdefault(name, []).append({part.split(" ")[0] for part in text.split(", ")})
    for name, view in stages.items():
        sql = _select(connection, root, name, view, columns.get(name, []))
        connection.execute(f"create view {name} as {sql}")
    for name, sql in _DERIVED.items():
        connection.execute(f"create view {name} as {sql}")
    _add_words(connection)
    connection.execute(_MACROS.read_text(encoding="utf-8"))


@contextmanager
def open_samples(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a catalog in memory whose view `subset` is a folder's parquet files.

    The views of all other stages are empty.
    """
    import pyarrow.dataset  # which loads pandas

    with (
        tempfile.TemporaryDirectory(prefix="laion-assets-sql-") as nothing,
        duckdb.connect(config={"temp_directory": nothing}) as connection,
    ):
        create_tables(connection)
        _define(connection, Path(nothing), _STAGES)
        connection.execute("drop view subset")
        # Arrow's reader never takes a path for a pattern.
        files = sorted(map(str, folder.glob("*.parquet")))
        connection.register("subset", pyarrow.dataset.dataset(files, schemas.SUBSET))
        yield connection


def _add_words(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the tables that macros join: reasons in the funnel's order, and the paper's rows."""
    reasons = [
        (place, stage, reason, meaning)
        for place, (stage, of_stage) in enumerate(REASONS.items())
        for reason, meaning in {"in": "went in", "kept": "was kept", **of_stage}.items()
    ]
    connection.execute(
        "create table reasons (place int, stage varchar, reason varchar, meaning varchar)"
    )
    connection.executemany("insert into reasons values (?, ?, ?, ?)", reasons)
    connection.execute(
        'create table laion400m (place int, "row" varchar, what varchar, samples bigint)'
    )
    paper = [(place, *row) for place, row in enumerate(_LAION400M)]
    connection.executemany("insert into laion400m values (?, ?, ?, ?)", paper)


def _select(
    connection: duckdb.DuckDBPyConnection,
    root: Path,
    name: str,
    view: _View,
    columns: Sequence[set[str]],
) -> str:
    """The SQL of a view. ``columns``: the different sets of columns that its files have.

    crawl and segment are in the path. They stay text, since "00" as a number would be 0.
    """
    # By name only if needed: DuckDB then reads all footers. Where every file lacks a column, the
    # next one may have it.
    whole = len(columns) == 1 and columns[0] >= set(view.columns.names) - set(_KEY.names)
    pattern = f"/{view.asset}/{EVERY_HIVE}/{view.files}"
    files = (
        f"read_parquet(coalesce(getvariable('{name}_files'), "
        f"[coalesce(getvariable('lake'), {quoted(str(root))}) || {quoted(pattern)}]), "
        "hive_partitioning = true, hive_types = {'crawl': varchar, 'segment': varchar}, "
        f"union_by_name = coalesce(getvariable('{name}_mixed'), {not whole})"
        f"{'' if columns else ', allow_empty = true'})"
    )
    types = connection.from_arrow(view.columns.empty_table()).types
    none = ", ".join(
        f'cast(null as {kind}) as "{column}"'
        for column, kind in zip(view.columns.names, types, strict=True)
    )
    # A column that no file has is null. Without files, read_parquet returns one column of its own,
    # which must not show.
    names = ", ".join(f'"{column}"' for column in view.columns.names)
    shown = "*" if view.open_ended and columns else names
    return f"select {shown} from (select {none} where false union all by name from {files})"


def _count(connection: duckdb.DuckDBPyConnection, view: str) -> int:
    row = connection.execute(f"select count(*) from {view}").fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def open_catalog(catalog: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a read-only connection that can access the catalog and the lake's files, nothing else.

    Raises ``FileNotFoundError`` if there is no catalog, ``ValueError`` if the lake was moved to a
    path that DuckDB would take for a pattern or for keys.
    """
    if not catalog.is_file():
        raise FileNotFoundError(f"no catalog at {catalog}: materialize the asset `catalog` first")
    with (
        tempfile.TemporaryDirectory(prefix="laion-assets-sql-") as spill,
        duckdb.connect(
            str(catalog),
            read_only=True,
            config={"temp_directory": spill, "autoinstall_known_extensions": False},
        ) as connection,
    ):
        lake = lake_of(catalog, connection)
        _refuse_pattern(lake)
        connection.execute(f"set variable lake = {quoted(str(lake))}")
        connection.execute(f"set allowed_directories = [{quoted(str(lake))}]")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        yield connection


def lake_of(catalog: Path, connection: duckdb.DuckDBPyConnection) -> Path:
    """Path of the lake: the folder above `catalog/catalog.duckdb`, else the path at its build."""
    path = catalog.absolute()
    if path.parent.name == CATALOG:
        return path.parent.parent
    ((root,),) = connection.execute("select root from lake").fetchall()
    return Path(root)


def query(catalog: Path, sql: str) -> pa.Table:
    """Run one SELECT (or DESCRIBE, SHOW, SUMMARIZE) over the catalog's views and macros.

    Nothing outside the lake is read and nothing is written: other statements are refused, since
    a COPY could write where reading is allowed. The query is repeated if a partition was replaced
    meanwhile (see :func:`ask`). Raises :class:`QueryError`.
    """
    try:
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError("only one SELECT, DESCRIBE, SHOW or SUMMARIZE can be run at a time")
        table = ask(catalog, lambda connection: connection.sql(sql).to_arrow_table())
    except duckdb.Error as error:
        raise QueryError(str(error)) from error
    return table.rename_columns(_distinct(table.column_names))


def ask(catalog: Path, question: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
    """Return what ``question`` finds in the catalog while no partition that it reads is replaced.

    If one was replaced, its files may have vanished, or old and new ones may be mixed: then the
    question is repeated, a few times at most. Raises :class:`QueryError` after the last of them.
    """
    for _ in range(_TRIES):
        with open_catalog(catalog) as connection:
            lake, assets = LocalLake.at(lake_of(catalog, connection)), _assets(connection)
            before = _partitions(lake, assets)
            try:
                answer = question(connection)
            except duckdb.IOException:
                if not _replaced(before, _partitions(lake, assets)):
                    raise
                continue
        if not _replaced(before, _partitions(lake, assets)):
            return answer
    raise QueryError(
        "partitions keep being replaced while they are read: retry when fewer runs are in progress"
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Give columns of one name distinct ones (``a``, ``a_1`` …); as keys they would collide."""
    distinct: list[str] = []
    for name in names:
        ways = (name, *(f"{name}_{number}" for number in range(1, len(names) + 1)))
        distinct.append(
            next(way for way in ways if way not in distinct and (way == name or way not in names))
        )
    return distinct


def _assets(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Assets that the catalog has views of; a further subset's view has its asset's name."""
    views = connection.execute("select view_name from duckdb_views() where not internal").fetchall()
    further = {name for (name,) in views} - set(_STAGES) - set(_DERIVED)
    return {view.asset for view in _STAGES.values()} | further


def _partitions(lake: LocalLake, assets: Iterable[str]) -> dict[Path, tuple[int, int]]:
    """Identity of each published partition's folder, which changes when it is replaced.

    The time is part of it, since a file system may reuse the inode of a deleted folder.
    """
    found = {}
    for asset in assets:
        for folder in (lake.folder(asset, key) for key in lake.segments(asset)):
            with suppress(FileNotFoundError):  # it has just been removed
                stat = folder.stat()
                found[folder] = (stat.st_ino, stat.st_mtime_ns)
    return found


def _replaced(
    before: Mapping[Path, tuple[int, int]], after: Mapping[Path, tuple[int, int]]
) -> bool:
    """Return whether a partition was replaced or removed; new ones are seen whole or not at all."""
    return any(after.get(folder) != which for folder, which in before.items())
