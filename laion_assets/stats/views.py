"""The catalog's views over the lake's files, the views over those and over its tables, the macros.

A view shows the files that the variable `<view>_files` lists, which whoever opens the catalog may
set. Without it, it shows what lies in the lake's folders, whenever that was published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from laion_assets import schemas
from laion_assets.funnel import REASONS
from laion_assets.lake import Lake
from laion_assets.layout import (
    EVERY_HIVE,
    PARTITIONS,
    SUBSET_PREFIX,
    Partition,
    SegmentKey,
)
from laion_assets.stats.partitions import HIVE, TABLES, quoted
from laion_assets.stats.statement import Macro, Names
from laion_assets.tables import KEY_COLUMNS


@dataclass(frozen=True)
class View:
    """What a view over files shows."""

    asset: str
    files: str
    columns: pa.Schema
    open_ended: bool = False
    scores: bool = False
    """Whether a file may have columns of heads, too."""


def _with_key(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [*((name, pa.string()) for name in KEY_COLUMNS if name not in schema.names), *schema]
    )


def views_of(partition: Partition) -> dict[str, View]:
    """The catalog's views of an asset's tables, by name; crawl and segment are in the path."""
    return {
        table.view: View(
            partition.asset,
            table.files,
            _with_key(table.schema),
            open_ended=table.schema.equals(schemas.IMAGES),
            scores=table.scores,
        )
        for table in partition.tables
        if table.view
    }


STAGES: Final[Mapping[str, View]] = {
    name: view for partition in PARTITIONS.values() for name, view in views_of(partition).items()
}

_WORDS: Final = ("lake", "reasons", "laion400m")
"""Further tables of the catalog."""

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

DERIVED: Final[Mapping[str, str]] = {
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


def define(
    connection: duckdb.DuckDBPyConnection,
    root: Path,
    views: Mapping[str, View],
    examples: Mapping[str, Sequence[tuple[str, Path]]],
) -> None:
    """Create the views and macros over :data:`~laion_assets.stats.partitions.TABLES`.

    ``examples``: of each view a file with each of the sets of columns that its files have, and that
    set, as :func:`laion_assets.tables.describe` has it.
    """
    for name, view in views.items():
        of_view = examples.get(name, ())
        if of_view:
            # DuckDB looks at the files when a view is created: at these, not at thousands.
            paths = ", ".join(quoted(str(path)) for _, path in of_view)
            connection.execute(f"set variable {name}_files = [{paths}]")
        sql = _select(connection, root, name, view, [columns for columns, _ in of_view])
        connection.execute(f"create view {name} as {sql}")
    for name, sql in DERIVED.items():
        connection.execute(f"create view {name} as {sql}")
    _add_words(connection)
    connection.execute(_MACROS.read_text(encoding="utf-8"))


def examples(
    connection: duckdb.DuckDBPyConnection, lake: Lake
) -> dict[str, list[tuple[str, Path]]]:
    """Return what :func:`define` needs of a database's :data:`TABLES` and the lake."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for view, columns, asset, crawl, segment, name in connection.execute(
        'select distinct on ("view", "columns") "view", "columns", asset, crawl, segment, name '
        'from files where "view" is not null order by all'
    ).fetchall():
        folder = lake.folder(asset, SegmentKey(crawl, segment), name)
        found.setdefault(view, []).append((columns, folder / name))
    return found


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
    view: View,
    columns: Sequence[str],
) -> str:
    """The SQL of a view. ``columns``: the different sets of columns that its files have.

    crawl and segment are in the path. They stay text, since "00" as a number would be 0.
    """
    # By name only if needed: DuckDB then reads all footers. Where every file lacks a column, the
    # next one may have it.
    present = {part.split(" ")[0] for text in columns for part in text.split(", ")}
    shown_columns = view.columns
    if view.scores:
        shown_columns = schemas.with_scores(shown_columns, schemas.score_columns(present))
    whole = len(columns) == 1 and present >= set(shown_columns.names) - set(KEY_COLUMNS)
    pattern = f"/{view.asset}/{EVERY_HIVE}/{view.files}"
    files = (
        f"read_parquet(coalesce(getvariable('{name}_files'), "
        f"[coalesce(getvariable('lake'), {quoted(str(root))}) || {quoted(pattern)}]), "
        f"{HIVE}, union_by_name = coalesce(getvariable('{name}_mixed'), {not whole})"
        f"{'' if columns else ', allow_empty = true'})"
    )
    types = connection.from_arrow(shown_columns.empty_table()).types
    none = ", ".join(
        f'cast(null as {kind}) as "{column}"'
        for column, kind in zip(shown_columns.names, types, strict=True)
    )
    # A column that no file has is null. Without files, read_parquet returns one column of its own,
    # which must not show.
    names = ", ".join(f'"{column}"' for column in shown_columns.names)
    shown = "*" if view.open_ended and columns else names
    return f"select {shown} from (select {none} where false union all by name from {files})"


def assets_of(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """Each of a catalog's views over files -> its asset; a further subset's view has its name."""
    views = connection.execute(
        "select view_name from duckdb_views() where not internal and not temporary"
    ).fetchall()
    further = {name: name for (name,) in views if name.startswith(SUBSET_PREFIX)}
    return {name: view.asset for name, view in STAGES.items()} | further


def names_in(connection: duckdb.DuckDBPyConnection) -> Names:
    """What the names in a statement about a catalog stand for."""
    tables = (*TABLES, *_WORDS, *DERIVED)
    derived = dict.fromkeys(tables) | dict.fromkeys(("stats", "top"), "statistics")
    macros = {
        name: Macro(*(frozenset(re.findall(r"\w+", part)) for part in (body, signature)))
        for name, signature, body in re.findall(
            r"^create macro (\w+)\((.*?)\) as table\n(.*?);$",
            _MACROS.read_text(encoding="utf-8"),
            re.MULTILINE | re.DOTALL,
        )
    }
    return Names(frozenset(assets_of(connection)), derived, macros)
