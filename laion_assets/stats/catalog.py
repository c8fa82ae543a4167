"""`catalog.duckdb`: views over the lake's parquet, macros over the views, and restricted queries.

The views name the lake by the absolute path it had when the catalog was built, so that any DuckDB
can open the file from anywhere. A lake that was moved is read after `SET VARIABLE lake = '…'`;
:func:`query` does so itself for a catalog that lies in the lake.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets import schemas
from laion_assets.files import atomic_path
from laion_assets.funnel import REASONS
from laion_assets.lake import LocalLake
from laion_assets.layout import (
    CATALOG,
    EVERY_HIVE,
    PARTITIONS,
    Partition,
    partition_of,
    unqueryable,
)

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
    "funnel": (
        "select stage, reason, cast(sum(n) as bigint) as n from funnel_by_segment group by all"
    ),
    "rejects": "from funnel_by_segment where reason not in ('in', 'kept')",
}


def build_catalog(lake_root: Path, out: Path, subsets: Sequence[str] = ()) -> dict[str, Any]:
    """Publish the catalog of a lake as the file ``out``; return each view's number of rows.

    ``subsets`` names the assets of further subsets; each gets a view of its name. New partitions
    appear in the views without a rebuild, also those of a stage that had none. Raises
    ``ValueError`` if the lake's path has characters that DuckDB would take for a pattern or key.
    """
    stages = dict(_STAGES)
    for name in subsets:
        stages |= _views(partition_of(name))
    root = lake_root.absolute()
    _refuse_pattern(root)
    with (
        atomic_path(out) as beside,
        duckdb.connect(
            str(beside), config={"storage_compatibility_version": _READABLE_BY}
        ) as connection,
    ):
        connection.execute("create table lake as select $root as root", {"root": str(root)})
        _define(connection, root, stages)
        rows = {name: _count(connection, name) for name in (*stages, *_DERIVED)}
        connection.execute("checkpoint")
    return {"views": rows}


def _refuse_pattern(root: Path) -> None:
    if unqueryable(root):
        raise ValueError(
            f"the lake's path {root} has one of the characters * ? [ =, which cannot be in a view's"
            " path: rename the folder"
        )


def _define(connection: duckdb.DuckDBPyConnection, root: Path, stages: Mapping[str, _View]) -> None:
    for name, view in stages.items():
        connection.execute(f"create view {name} as {_select(connection, root, view)}")
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


def _select(connection: duckdb.DuckDBPyConnection, root: Path, view: _View) -> str:
    pattern = f"{view.asset}/{EVERY_HIVE}/{view.files}"
    # crawl and segment are in the path and, for some stages, in the file, too. The path's values
    # win, and stay text, since "00" as a number would be 0.
    files = (
        f"read_parquet(coalesce(getvariable('lake'), {_quoted(str(root))}) || "
        f"{_quoted('/' + pattern)}, hive_partitioning = true, "
        "hive_types = {'crawl': varchar, 'segment': varchar}"
    )
    names = ", ".join(f'"{name}"' for name in view.columns.names)
    if next(root.glob(pattern), None) is None:
        types = connection.from_arrow(view.columns.empty_table()).types
        none = ", ".join(
            f'cast(null as {kind}) as "{name}"'
            for name, kind in zip(view.columns.names, types, strict=True)
        )
        # Without files, read_parquet returns one column of its own, which must not show.
        return (
            f"select {names} from (select {none} where false union all by name "
            f"from {files}, allow_empty = true, union_by_name = true))"
        )
    if view.open_ended:
        # img2dataset's options decide which of its columns a shard has.
        return f"from {files}, union_by_name = true)"
    # By name only if needed: DuckDB then reads the footers even of files that a filter excludes.
    mixed = ", union_by_name = true" if _mixed(root, pattern, view.columns) else ""
    return f"select {names} from {files}{mixed})"


def _mixed(root: Path, pattern: str, columns: pa.Schema) -> bool:
    """Return whether any partition lacks some of the columns; one file of each is looked at."""
    seen: set[Path] = set()
    for path in root.glob(pattern):
        if path.parent not in seen:
            seen.add(path.parent)
            present = set(pq.read_schema(path).names) | {"crawl", "segment"}
            if not present >= set(columns.names):
                return True
    return False


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


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
        connection.execute(f"set variable lake = {_quoted(str(lake))}")
        connection.execute(f"set allowed_directories = [{_quoted(str(lake))}]")
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
