"""`catalog.duckdb`: tables of the lake's partitions, views over its parquet, macros over both, and
restricted queries.

The views name the lake by the absolute path it had when the catalog was built, so that any DuckDB
can open the file from anywhere. A lake that was moved is read after `SET VARIABLE lake = '…'`;
:func:`query` does so itself for a catalog that lies in the lake.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb
import pyarrow as pa

from laion_assets.errors import TransientError
from laion_assets.files import atomic_path
from laion_assets.lake import Lake, LocalLake
from laion_assets.layout import CATALOG, partition_of, unqueryable, with_subsets
from laion_assets.stats.current import Current, files_of, look, show
from laion_assets.stats.partitions import LAYOUT, fill, quoted
from laion_assets.stats.statement import Names, Reading, reading_of
from laion_assets.stats.sums import fill_sums
from laion_assets.stats.views import STAGES, assets_of, define, examples, names_in, views_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TRIES: Final = 5
_READABLE_BY: Final = "v1.2.0"
"""The oldest DuckDB that can open the catalog. A team's shells and notebooks lag behind ours."""


class QueryError(ValueError):
    """The SQL is not one query that reads, or DuckDB refused it; the message says why."""


def build_catalog(
    lake: Lake | Path, out: Path, subsets: Sequence[str] = (), previous: Path | None = None
) -> dict[str, Any]:
    """Publish the catalog of a lake as the file ``out``; return its summary.

    ``subsets`` names the assets of further subsets; each gets a view of its name. ``previous``: an
    earlier catalog of the lake, which is read and left as it is; what it knows of unchanged
    partitions is taken over. The summary has ``partitions`` (how many), ``views`` (their rows) and
    ``made_of`` (a digest of all partitions' data versions). Raises ``ValueError`` if the lake's
    path has characters that DuckDB would take for a pattern or key, ``TransientError`` if a file
    that it looks at vanishes.
    """
    lake = lake if isinstance(lake, Lake) else LocalLake.at(lake)
    root = lake.local_root.absolute()
    _refuse_pattern(root)
    stages = dict(STAGES)
    for name in subsets:
        stages |= views_of(partition_of(name))
    with (
        atomic_path(out) as beside,
        duckdb.connect(
            str(beside), config={"storage_compatibility_version": _READABLE_BY}
        ) as connection,
    ):
        usable = previous if previous and _is_usable(previous) else None
        fill(connection, lake, with_subsets(subsets), usable)
        connection.execute(
            "create table lake as select $root as root, $layout as layout",
            {"root": str(root), "layout": LAYOUT},
        )
        try:
            fill_sums(connection, lake, usable)
            define(connection, root, stages, examples(connection, lake))
        except duckdb.IOException as error:
            raise TransientError(f"replaced while the catalog was built: {error}") from error
        rows = dict.fromkeys(stages, 0) | dict(
            connection.execute(
                'select "view", cast(sum("rows") as bigint) from files '
                'where "view" is not null group by all'
            ).fetchall()
        )
        ((partitions, made_of),) = connection.execute(
            "select count(*), md5(coalesce(string_agg(data_version, ' ' order by asset, crawl, "
            "segment), '')) from partitions"
        ).fetchall()
        connection.execute("checkpoint")
    return {"partitions": partitions, "views": rows, "made_of": made_of}


def _is_usable(previous: Path) -> bool:
    """Whether a catalog's tables are those that this code makes."""
    try:
        with duckdb.connect(str(previous), read_only=True) as connection:
            return connection.execute("select layout from lake").fetchall() == [(LAYOUT,)]
    except duckdb.Error as error:
        logger.info(f"{previous} is not taken over: {error}")
        return False


def _refuse_pattern(root: Path | str) -> None:
    if unqueryable(root):
        raise ValueError(
            f"the lake's path {root} has one of the characters * ? [ =, which cannot be in a view's"
            " path: rename the folder"
        )


@contextmanager
def open_catalog(
    catalog: Path, lake: Lake | None = None, linked: Path | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a read-only connection that can access the catalog and the lake's files, nothing else.

    ``lake``: by default the folder above the catalog's, or the one that it was built for.
    ``linked``: a folder of links to such files, to be read in its place. Raises
    ``FileNotFoundError`` if there is no catalog, ``ValueError`` if the lake was moved to a path
    that DuckDB would take for a pattern or for keys.
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
        lake = lake or LocalLake.at(lake_of(catalog, connection))
        root = lake.attach(connection)
        _refuse_pattern(root)
        connection.execute(f"set variable lake = {quoted(str(linked or root))}")
        folders = ", ".join(quoted(str(folder)) for folder in (root, linked) if folder)
        connection.execute(f"set allowed_directories = [{folders}]")
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


def query(catalog: Path, sql: str, lake: Lake | None = None) -> pa.Table:
    """Run one SELECT (or DESCRIBE, SHOW, SUMMARIZE) over the catalog's views and macros.

    Nothing outside the lake is read and nothing is written: other statements are refused, since
    a COPY could write where reading is allowed. Each partition is seen whole, as :func:`ask` has
    it; only those that the statement can read are looked at. ``lake``: as :func:`open_catalog` has
    it. Raises :class:`QueryError`.
    """
    try:
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError("only one SELECT, DESCRIBE, SHOW or SUMMARIZE can be run at a time")
        table = _ask(
            catalog,
            lake,
            lambda connection, reading: connection.sql(reading.sql).to_arrow_table(),
            lambda connection, names: reading_of(connection, sql, names),
        )
    except duckdb.Error as error:
        raise QueryError(str(error)) from error
    return table.rename_columns(_distinct(table.column_names))


def ask(
    catalog: Path,
    question: Callable[[duckdb.DuckDBPyConnection], T],
    views: Collection[str] | None = None,
    lake: Lake | None = None,
) -> T:
    """Return what ``question`` finds in the catalog, each partition as one publication left it.

    ``views``: those over files that it reads; None: any. ``lake``: as :func:`open_catalog` has it.
    If a partition that it reads is replaced meanwhile, it is asked once more: of a folder, with the
    files held open or linked, so that it ends. Raises :class:`QueryError` where that is refused,
    or if a store's partitions are replaced under each of several tries.
    """
    return _ask(
        catalog,
        lake,
        lambda connection, _: question(connection),
        lambda _, names: Reading("", dict.fromkeys(names.views if views is None else views)),
    )


def _ask(
    catalog: Path,
    lake: Lake | None,
    question: Callable[[duckdb.DuckDBPyConnection, Reading], T],
    read: Callable[[duckdb.DuckDBPyConnection, Names], Reading],
) -> T:
    for _ in range(_TRIES):
        with open_catalog(catalog, lake) as connection:
            of = lake or LocalLake.at(lake_of(catalog, connection))
            reading = read(connection, names_in(connection))
            current = look(connection, of, reading, assets_of(connection))
            try:
                answer = question(connection, reading)
            except duckdb.Error:
                # Files of a partition that was replaced vanish under a question.
                if current.is_current:
                    raise
            else:
                if current.is_current:
                    return answer
            files = files_of(connection, reading)
        if isinstance(of, LocalLake) and not reading.by_path:
            return _ask_a_snapshot(catalog, of, question, reading, current.snapshot(of, files))
    raise QueryError(
        "partitions keep being replaced while they are read from a store or by their paths: retry "
        "when fewer runs are in progress"
    )


def _ask_a_snapshot(
    catalog: Path,
    lake: LocalLake,
    question: Callable[[duckdb.DuckDBPyConnection, Reading], T],
    reading: Reading,
    snapshot: AbstractContextManager[Current],
) -> T:
    with ExitStack() as stack:
        try:
            current = stack.enter_context(snapshot)
        except OSError as error:
            raise QueryError(
                "partitions were replaced while they were read, and no snapshot of them can be "
                f"made: {error}"
            ) from error
        linked = current.lake.local_root
        connection = stack.enter_context(open_catalog(catalog, lake, linked))
        show(connection, current, reading)
        return question(connection, reading)


def _distinct(names: Sequence[str]) -> list[str]:
    """Give columns of one name distinct ones (``a``, ``a_1`` …); as keys they would collide."""
    distinct: list[str] = []
    for name in names:
        ways = (name, *(f"{name}_{number}" for number in range(1, len(names) + 1)))
        distinct.append(
            next(way for way in ways if way not in distinct and (way == name or way not in names))
        )
    return distinct
