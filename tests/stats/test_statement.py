from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pytest

from laion_assets.stats.catalog import build_catalog, query
from laion_assets.stats.statement import Macro, Names, reading_of
from laion_assets.stats.views import names_in

NAMES = Names(
    frozenset({"pairs", "subset", "statistics"}),
    {"runs": None, "stats": "statistics"},
    {"hosts": Macro(frozenset({"query_table", "runs"}), frozenset({"subset"}))},
)
KEYS = [("A", "00"), ("A", "01"), ("B", "00")]


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connected:
        connected.execute("create table _names (crawl varchar, segment varchar)")
        connected.executemany("insert into _names values (?, ?)", KEYS)
        yield connected


def _read(
    connection: duckdb.DuckDBPyConnection, views: Mapping[str, list[str] | None]
) -> dict[str, list[tuple[str, str]]]:
    """The partitions of each view that are read."""
    return {
        view: KEYS
        if keys is None
        else sorted({row for key in keys for row in connection.execute(key).fetchall()})
        for view, keys in views.items()
    }


@pytest.mark.parametrize(
    ("sql", "views"),
    [
        ("from subset", {"subset": KEYS}),
        ("select url from main.Subset as s where s.similarity > 0.3", {"subset": KEYS}),
        ("from subset where crawl = 'A'", {"subset": KEYS[:2]}),
        ("from subset as s where S.crawl = 'A' and 0.3 < similarity", {"subset": KEYS[:2]}),
        ("from subset where crawl glob 'A*' and segment in ('01')", {"subset": KEYS[1:2]}),
        ("from subset where not (crawl = 'A' or segment like '1%')", {"subset": KEYS[2:]}),
        ("from subset where crawl || segment between 'A01' and 'B'", {"subset": KEYS[1:2]}),
        ("from subset where crawl = 'A' or similarity > 0.3", {"subset": KEYS}),
        ("from subset where crawl = (select max(crawl) from runs)", {"subset": KEYS}),
        ("from subset where crawl = 'C'", {"subset": []}),
        ("from subset as s(segment, crawl) where crawl = 'A'", {"subset": KEYS}),
        ("from subset where crawl = 'A' using sample 3", {"subset": KEYS}),
        ("from subset tablesample 3 rows where crawl = 'A'", {"subset": KEYS}),
        ("from stats where segment = '00'", {"statistics": [KEYS[0], KEYS[2]]}),
        ("from subset join pairs using (crawl) where crawl = 'A'", {"subset": KEYS, "pairs": KEYS}),
        (
            "select (select max(url) from pairs where crawl = 'B'), n from (from subset) as t(n)",
            {"pairs": KEYS[2:], "subset": KEYS},
        ),
        (
            "from subset where crawl = 'A' union all from subset where segment = '00'",
            {"subset": KEYS},
        ),
        ("with t as (from pairs) select * from t", {"pairs": KEYS}),
        ("with subset as (from subset where crawl = 'A') from subset", {"subset": KEYS}),
        ("from hosts()", {"subset": KEYS}),
        ("from hosts(3, view := 'pairs', crawls := 'A*')", {"pairs": KEYS[:2]}),
        ("from hosts(3, 'pairs')", {"pairs": KEYS}),
        ("from runs, range(3), unnest([1])", {}),
        ("from information_schema.tables", {}),
        ("show tables", {}),
        ("describe runs", {}),
        ("summarize subset", {"subset": KEYS}),
        ("select 1", {}),
    ],
)
def test_a_statement_reads_the_partitions_that_it_names(
    connection: duckdb.DuckDBPyConnection, sql: str, views: dict[str, list[tuple[str, str]]]
) -> None:
    reading = reading_of(connection, sql, NAMES)
    assert _read(connection, reading.views) == views
    assert (reading.by_path, reading.first, reading.counts) == (False, None, {})


def test_no_file_is_read_for_a_count(connection: duckdb.DuckDBPyConnection) -> None:
    sql = "select count(*) from pairs where crawl = 'A' union all select max(width) from subset"
    reading = reading_of(connection, sql, NAMES)
    assert _read(connection, reading.counts) == {"pairs": KEYS[:2]}
    assert _read(connection, reading.views) == {"subset": KEYS}


@pytest.mark.parametrize(
    "sql",
    [
        "from '/lake/filtered_subset/**/*.parquet'",
        "from read_parquet('/lake/x.parquet')",
        "from query_table('sub' || 'set')",
        "from hosts(3, view := 'sub' || 'set')",
        "from query('from subset')",
        "not sql at all",
        "drop view subset",
    ],
)
def test_what_may_read_by_another_way_may_read_everything(
    connection: duckdb.DuckDBPyConnection, sql: str
) -> None:
    reading = reading_of(connection, sql, NAMES)
    assert (reading.by_path, reading.sql) == (True, sql)
    assert _read(connection, reading.views) == dict.fromkeys(NAMES.views, KEYS)


@pytest.mark.parametrize(
    ("sql", "first"),
    [
        ("from subset limit 3", 3),
        ("select url, subset.text from subset where crawl = 'A' limit 3 offset 4", 7),
        ("select count(*) from (from subset limit 5)", 5),
        ("from subset where similarity > 0.3 limit 3", None),
        ("from subset order by similarity limit 3", None),
        ("select sum(width) from subset limit 3", None),
        ("select distinct url from subset limit 3", None),
        ("select url from subset group by url limit 3", None),
        ("from subset using sample 3 limit 3", None),
        ("select crawl from subset group by all limit 5", None),
        ("from subset offset 5", None),
        ("select * replace (count(*) over () as width) from subset limit 1", None),
        ("from subset limit 3%", None),
        ("from subset limit (select 3)", None),
        ("from subset limit 3 offset (select 3)", None),
        ("(from subset limit 3) union all (from subset limit 3)", None),
        ("from subset, pairs limit 3", None),
        ("from hosts() limit 3", None),
    ],
)
def test_the_first_rows_of_a_view_are_told_from_all(
    connection: duckdb.DuckDBPyConnection, sql: str, first: int | None
) -> None:
    assert reading_of(connection, sql, NAMES).first == first


COUNTS = [
    "select count(*) from subset",
    "select count() from subset as s where s.crawl = 'CC-MAIN-2000-05'",
    "select count(*) as n, 2 * count(*) as twice from images where segment = '00'",
    "select count(*) from subset where crawl = 'none'",
    "select crawl, count(*) from scored group by crawl order by count(*), crawl",
    "select crawl, segment, count(*) as n from pairs group by all having count(*) > 1 order by all",
    "select crawl, count(*) as n from pairs group by 1 order by n desc, crawl",
    "select crawl, count(*) as n from pairs group by crawl order by n desc, crawl limit 1",
    "select crawl, count(*) filter (where segment = '00') as n from subset group by rollup(crawl) "
    "order by all",
    "select distinct crawl from subset order by crawl",
    "select segment from fetches group by segment order by segment",
    "select (select count(*) from subset) as kept, (select count(*) from pairs) as pairs",
    "with t as (select count(*) as n from scored where similarity > 0.3), "
    "u as (select count(*) as m from scored) select n, m, count(*) as k from t, u group by all",
    "with t as (select count(*) as n from scored where width > 300) "
    "select count(*) from subset where crawl = 'CC-MAIN-2001-05'",
]
NOT_COUNTS = [
    "select count(WIDTH) from subset",
    "select count(distinct crawl) from subset",
    "select count(*) filter (where WIDTH > 300) as n from subset",
    "select count(*) + 1 from subset",
    "select crawl from subset order by crawl",
    "select count(*) over () as n, crawl from subset order by all",
    "select any_value(crawl) is null as a, count(*) as n from subset",
    "select language as crawl, count(*) as n from scored group by language order by language",
    "select count(*) as n from subset where WIDTH > 300",
    "select count(*) as n from subset where SAMPLE_ID in (select SAMPLE_ID from scored)",
    "with subset as (from scored) select count(*) from subset",
    "select count(*) from subset using sample 100%",
    "select count(*) from (from subset) as subset",
    "select lower(crawl) as c, count(*) as n from subset group by all order by c",
    "select crawl, count(*) from (select crawl from subset where width > 300) group by crawl "
    "order by crawl",
]


@pytest.fixture(scope="module")
def catalog(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("counts") / "catalog.duckdb"
    build_catalog(lake, path)
    return path


@pytest.mark.parametrize("sql", [*COUNTS, *NOT_COUNTS])
def test_counts_from_the_catalog_are_those_of_the_files(catalog: Path, sql: str) -> None:
    with duckdb.connect(str(catalog), read_only=True) as plain:
        assert (reading_of(plain, sql, names_in(plain)).sql != sql) == (sql in COUNTS)
        expected = plain.sql(sql).to_arrow_table()
    assert query(catalog, sql).equals(expected)
