"""`catalog.duckdb`: views over the lake's parquet, macros over the views, and reading them without
further access.

The views name the lake by the absolute path it had when the catalog was built, so that any DuckDB
can open the file from anywhere. A lake that was moved is read after `SET VARIABLE lake = '…'`;
:func:`query` does that by itself for a catalog that lies in the lake.
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
from laion_assets.download.outcomes import LEDGER_SCHEMA, OUTCOME_SCHEMA
from laion_assets.files import atomic_path
from laion_assets.funnel import REASONS
from laion_assets.lake import LocalLake
from laion_assets.segments import EVERY_HIVE
from laion_assets.stats.formats import FUNNEL, HISTOGRAMS, RUNS, TOP

T = TypeVar("T")

_KEY: Final = [("crawl", pa.string()), ("segment", pa.string())]

IMAGES: Final = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        *OUTCOME_SCHEMA,
        *(field for field in schemas.PAIRS if field.name not in ("url", "text")),
    ]
)
"""The columns of the view `images` while no shard tells its own."""


class QueryError(ValueError):
    """The SQL is not one query that reads, or DuckDB refused it; the message says why."""


@dataclass(frozen=True)
class _View:
    asset: str
    files: str
    columns: pa.Schema
    open_ended: bool = False


def _with_key(schema: pa.Schema) -> pa.Schema:
    return pa.schema([*_KEY, *schema])


_STAGES: Final[Mapping[str, _View]] = {
    "pairs": _View("pair_parquet", "part-*.parquet", schemas.PAIRS),
    "unique_pairs": _View("unique_pairs", "part-*.parquet", schemas.PAIRS),
    "images": _View("image_shards", "[0-9]*.parquet", IMAGES, open_ended=True),
    "fetches": _View("image_shards", "_ledger/*.parquet", _with_key(LEDGER_SCHEMA)),
    "scored": _View("scored_pairs", "part-*.parquet", schemas.SCORED),
    "subset": _View("filtered_subset", "part-*.parquet", schemas.SUBSET),
    "stats": _View("segment_stats", "histograms.parquet", _with_key(HISTOGRAMS)),
    "top": _View("segment_stats", "top.parquet", _with_key(TOP)),
    "runs": _View("segment_stats", "runs.parquet", _with_key(RUNS)),
    "funnel_by_segment": _View("segment_stats", "funnel.parquet", _with_key(FUNNEL)),
}

_TRIES: Final = 5
_READABLE_BY: Final = "v1.5.0"
"""The oldest DuckDB that can open the catalog: the newest command-line one lags behind Python's."""

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
"""Samples with either side, or both, of at least so many pixels: arXiv 2111.02114, table 1."""

_DERIVED: Final[Mapping[str, str]] = {
    "funnel": (
        "select stage, reason, cast(sum(n) as bigint) as n from funnel_by_segment group by all"
    ),
    "rejects": "from funnel_by_segment where reason not in ('in', 'kept')",
}


def build_catalog(lake_root: Path, out: Path, subsets: Sequence[str] = ()) -> dict[str, Any]:
    """Publish the catalog of a lake as the file ``out``; returns each view's number of rows.

    ``subsets`` names the assets of further subsets, each of which has a view of its name.
    New partitions appear in the views by themselves, also those of a stage that had none. Raises
    ``ValueError`` if the lake's path holds characters that DuckDB would take for a pattern or key.
    """
    further = {name: _View(name, "part-*.parquet", schemas.SUBSET) for name in subsets}
    stages = {**_STAGES, **further}
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
    if any(character in str(root) for character in "*?[="):
        raise ValueError(f"the lake's path {root} holds one of * ? [ = and cannot be in a view")


def _define(connection: duckdb.DuckDBPyConnection, root: Path, stages: Mapping[str, _View]) -> None:
    for name, view in stages.items():
        connection.execute(f"create view {name} as {_select(connection, root, view)}")
    for name, sql in _DERIVED.items():
        connection.execute(f"create view {name} as {sql}")
    _add_words(connection)
    connection.execute(_MACROS.read_text(encoding="utf-8"))


@contextmanager
def open_samples(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A catalog in memory, whose view `subset` is the parquet files of a folder, and without
    any other stage."""
    import pyarrow.dataset  # which loads pandas

    with (
        tempfile.TemporaryDirectory(prefix="laion-assets-sql-") as nothing,
        duckdb.connect(config={"temp_directory": nothing}) as connection,
    ):
        _define(connection, Path(nothing), _STAGES)
        connection.execute("drop view subset")
        # Arrow's reader takes no path for a pattern.
        files = sorted(map(str, folder.glob("*.parquet")))
        connection.register("subset", pyarrow.dataset.dataset(files, schemas.SUBSET))
        yield connection


def _add_words(connection: duckdb.DuckDBPyConnection) -> None:
    """Tables that the macros tell numbers with: reasons in the funnel's order, the paper's rows."""
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
    # crawl and segment are in the path and, for some stages, in the file too: the path's win, and
    # stay text, since "00" as a number would be 0.
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
        # Without files, read_parquet has one column of its own, which is not ours.
        return (
            f"select {names} from (select {none} where false union all by name "
            f"from {files}, allow_empty = true, union_by_name = true))"
        )
    if view.open_ended:
        # Not all of img2dataset's columns are always there: which ones, its options decide.
        return f"from {files}, union_by_name = true)"
    # By name only where it is needed: it has every file's footer read before the first is left out.
    mixed = ", union_by_name = true" if _mixed(root, pattern, view.columns) else ""
    return f"select {names} from {files}{mixed})"


def _mixed(root: Path, pattern: str, columns: pa.Schema) -> bool:
    """Whether a partition was made by code that had other columns; one file of each tells."""
    seen: set[Path] = set()
    for path in root.glob(pattern):
        if path.parent not in seen:
            seen.add(path.parent)
            there = set(pq.read_schema(path).names) | {"crawl", "segment"}
            if not there >= set(columns.names):
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
    """A read-only connection that sees the catalog and the lake's files, and nothing else.

    Raises ``FileNotFoundError`` if there is no catalog, ``ValueError`` if the lake was moved to
    where DuckDB would take its path for a pattern or for keys.
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
    """The folder above `catalog/catalog.duckdb`, wherever it is now; else where the lake was."""
    path = catalog.absolute()
    if path.parent.name == "catalog":
        return path.parent.parent
    ((root,),) = connection.execute("select root from lake").fetchall()
    return Path(root)


def query(catalog: Path, sql: str) -> pa.Table:
    """The result of one SELECT (or DESCRIBE, SHOW, SUMMARIZE) over the catalog's views and macros.

    Nothing outside the lake is read and nothing is written: other statements are refused, since
    a COPY could write where reading is allowed. Partitions may be published meanwhile: if one was
    replaced, which could have taken its files away or mixed old with new ones, the question is
    asked again, a few times at most. Raises :class:`QueryError`.
    """
    try:
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError("only one SELECT, DESCRIBE, SHOW or SUMMARIZE can be asked at a time")
        table = ask(catalog, lambda connection: connection.sql(sql).to_arrow_table())
    except duckdb.Error as error:
        raise QueryError(str(error)) from error
    return table.rename_columns(_distinct(table.column_names))


def ask(catalog: Path, question: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
    """What ``question`` finds in the catalog while no partition that it reads is replaced.

    It is asked again if one was, which could have taken its files away or mixed old with new ones.
    Raises :class:`QueryError` if that does not end.
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
        "partitions keep being replaced while they are read: ask again when fewer are being made"
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """``a``, ``a_1`` … for columns of one name, which as keys would be one."""
    distinct: list[str] = []
    for name in names:
        ways = (name, *(f"{name}_{number}" for number in range(1, len(names) + 1)))
        distinct.append(
            next(way for way in ways if way not in distinct and (way == name or way not in names))
        )
    return distinct


def _assets(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Those that the catalog has views of; a further subset's view has its asset's name."""
    views = connection.execute("select view_name from duckdb_views() where not internal").fetchall()
    further = {name for (name,) in views} - set(_STAGES) - set(_DERIVED)
    return {view.asset for view in _STAGES.values()} | further


def _partitions(lake: LocalLake, assets: Iterable[str]) -> dict[Path, tuple[int, int]]:
    """Folder of each published partition -> what is another one once it has been replaced.

    The time beside the inode, since a file system gives the number of a deleted folder again.
    """
    found = {}
    for asset in assets:
        for folder in (lake.folder(asset, key) for key in lake.segments(asset)):
            with suppress(FileNotFoundError):  # it has just been taken away
                stat = folder.stat()
                found[folder] = (stat.st_ino, stat.st_mtime_ns)
    return found


def _replaced(
    before: Mapping[Path, tuple[int, int]], after: Mapping[Path, tuple[int, int]]
) -> bool:
    """Whether a partition was replaced, or taken away. New ones are seen whole or not at all."""
    return any(after.get(folder) != which for folder, which in before.items())
