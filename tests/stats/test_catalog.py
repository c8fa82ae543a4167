from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from laion_assets import schemas
from laion_assets.stats.catalog import QueryError, build_catalog, query
from tests.stats.conftest import SegmentFiles

VIEWS = {
    "pairs",
    "unique_pairs",
    "images",
    "fetches",
    "scored",
    "subset",
    "stats",
    "top",
    "runs",
    "rejects",
    "funnel",
    "funnel_by_segment",
}


@pytest.fixture(scope="module")
def catalog(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog that lies outside the lake it was built for."""
    path = tmp_path_factory.mktemp("apart") / "catalog.duckdb"
    build_catalog(lake, path)
    return path


def _rows(catalog: Path, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in query(catalog, sql).to_pylist()]


def test_the_funnel_is_summed_over_all_segments(catalog: Path) -> None:
    funnel = _rows(catalog, "select stage, reason, n from funnel order by 1, 2")
    assert funnel == sorted(funnel)
    assert {(stage, reason): n for stage, reason, n in funnel}["pairs", "in"] == 3 * 167
    assert ("subset", "kept", 72) in funnel
    assert ("images", "http_4xx", 30) in funnel


def test_rejects_are_by_segment_and_only_rejects(catalog: Path) -> None:
    rows = _rows(catalog, "select * from rejects where stage = 'subset' order by all")
    assert rows == [
        ("CC-MAIN-2000-05", "00", "subset", "below_threshold", 16),
        ("CC-MAIN-2000-05", "01", "subset", "below_threshold", 16),
        ("CC-MAIN-2001-05", "00", "subset", "below_threshold", 16),
    ]
    assert not _rows(catalog, "from rejects where reason in ('in', 'kept')")


def test_every_view_counts_its_files_once(lake: Path, tmp_path: Path) -> None:
    rows = build_catalog(lake, tmp_path / "c.duckdb")["views"]
    assert set(rows) == VIEWS
    assert [rows[name] for name in ("pairs", "unique_pairs", "images", "scored", "subset")] == [
        180,
        165,
        165,
        120,
        72,
    ], "metadata/ beside the subset's parts is not counted a second time"
    assert rows["runs"] == 18
    assert rows["fetches"] == rows["images"]


def test_crawl_and_segment_are_text_and_come_once(catalog: Path) -> None:
    for view in VIEWS - {"funnel"}:
        names = query(catalog, f"select * from {view} limit 0").schema.names
        assert names.count("crawl") == names.count("segment") == 1, view
        assert len({name.lower() for name in names}) == len(names), view
        keys = _rows(catalog, f"select distinct crawl, segment from {view} order by all")
        assert keys == [
            ("CC-MAIN-2000-05", "00"),
            ("CC-MAIN-2000-05", "01"),
            ("CC-MAIN-2001-05", "00"),
        ], view


def test_the_stages_columns_are_the_contracts(catalog: Path) -> None:
    subset = query(catalog, "from subset limit 1")
    assert subset.schema.names == schemas.SUBSET.names
    assert subset.schema.field("WIDTH").type == pa.int32()
    assert query(catalog, "from pairs limit 0").schema.names == schemas.PAIRS.names


def test_a_stage_without_partitions_is_an_empty_view(lake: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = tmp_path / "c.duckdb"
    assert set(build_catalog(tmp_path / "empty", path)["views"].values()) == {0}
    full = tmp_path / "full.duckdb"
    build_catalog(lake, full)
    for view in VIEWS:
        here = query(path, f"from {view} limit 0").schema
        there = query(full, f"from {view} limit 0").schema
        if view == "images":
            assert set(here.names) == set(there.names)
        else:
            assert here == there, view


def test_staging_folders_are_not_seen_and_new_partitions_are(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    first = SegmentFiles(lake, "CC-MAIN-2000-05", "00")
    first.write()
    catalog = tmp_path / "catalog.duckdb"
    build_catalog(lake, catalog)
    staging = lake / ".staging" / "filtered_subset" / "crawl=CC-MAIN-2000-05" / "segment=01"
    shutil.copytree(first.folder("filtered_subset"), staging)
    beside = lake / "filtered_subset" / ".crawl=CC-MAIN-2000-05" / "segment=01"
    shutil.copytree(first.folder("filtered_subset"), beside)
    assert _rows(catalog, "select count(*) from subset") == [(24,)]
    SegmentFiles(lake, "CC-MAIN-2000-05", "01").write()
    assert _rows(catalog, "select count(*) from subset") == [(48,)]


def test_a_moved_lake_is_read_where_it_is_now(tmp_path: Path) -> None:
    SegmentFiles(tmp_path / "lake", "CC-MAIN-2000-05", "00").write()
    build_catalog(tmp_path / "lake", tmp_path / "lake" / "catalog" / "catalog.duckdb")
    (tmp_path / "lake").rename(tmp_path / "it's moved")
    moved = tmp_path / "it's moved" / "catalog" / "catalog.duckdb"
    assert _rows(moved, "select count(*) from subset") == [(24,)]
    with duckdb.connect(str(moved), read_only=True) as plain:
        plain.execute("set variable lake = ?", [str(tmp_path / "it's moved")])
        assert plain.execute("select count(*) from subset").fetchall() == [(24,)]


def test_any_duckdb_opens_the_catalog_from_anywhere(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with duckdb.connect(str(catalog), read_only=True) as plain:
        assert plain.execute("select count(*) from subset").fetchall() == [(72,)]


@pytest.mark.parametrize(
    "sql",
    [
        "from read_csv('/etc/passwd')",
        "from read_text('{lake}/../../../../../../etc/passwd')",
        "from glob('/etc/*')",
        "copy (select 1) to '{lake}/new.csv'",
        "explain analyze copy (select 1) to '{lake}/new.csv'",
        "copy (select 1) to '/tmp/new.csv'",
        "attach '{lake}/new.duckdb'",
        "set enable_external_access = true",
        "create table t (i int)",
        "drop view subset",
        "select 1; select 2",
        "",
        "select * from nothing",
        "selec 1",
    ],
)
def test_a_query_reads_the_lake_and_does_nothing_else(catalog: Path, lake: Path, sql: str) -> None:
    before = sorted(lake.iterdir())
    with pytest.raises(QueryError):
        query(catalog, sql.format(lake=lake))
    assert sorted(lake.iterdir()) == before


def test_files_of_the_lake_can_be_read_by_name(catalog: Path, lake: Path) -> None:
    sql = f"select count(*) from '{lake}/filtered_subset/crawl=CC-MAIN-2001-05/*/part-*.parquet'"
    assert _rows(catalog, sql) == [(24,)]


def test_a_catalog_is_replaced_while_it_is_read(lake: Path, tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    build_catalog(lake, path)
    with duckdb.connect(str(path), read_only=True) as reader:
        build_catalog(lake, path)
        assert reader.execute("select count(*) from subset").fetchall() == [(72,)]
    assert [file.name for file in tmp_path.iterdir()] == ["catalog.duckdb"]


def test_what_cannot_be_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="materialize the asset"):
        query(tmp_path / "catalog.duckdb", "select 1")
    with pytest.raises(ValueError, match="cannot be in a view"):
        build_catalog(tmp_path / "a*b", tmp_path / "catalog.duckdb")
