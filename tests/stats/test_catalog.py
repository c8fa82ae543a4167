from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets import schemas
from laion_assets.cli import main
from laion_assets.funnel import STAGES
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.stats.catalog import QueryError, ask, build_catalog, query
from laion_assets.tables import part_path
from tests.processes import PATIENCE_S
from tests.stats.conftest import SEGMENTS, SegmentFiles

VIEWS = {
    "pairs",
    "unique_pairs",
    "images",
    "fetches",
    "scored",
    "near_duplicates",
    "subset",
    "statistics",
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
    assert set(rows) == VIEWS - {"stats", "top", "funnel", "funnel_by_segment", "rejects", "runs"}
    assert [rows[name] for name in ("pairs", "unique_pairs", "images", "scored", "subset")] == [
        180,
        165,
        165,
        120,
        72,
    ]
    assert rows["fetches"] == rows["images"]


def test_crawl_and_segment_are_text_and_come_once(catalog: Path) -> None:
    for view in VIEWS - {"funnel", "near_duplicates"}:
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


def test_heads_columns_show_where_a_segment_has_them(lake: Path, tmp_path: Path) -> None:
    """A segment that was scored before the head came has null."""
    own = shutil.copytree(lake, tmp_path / "lake")
    newest = SegmentFiles(own, "CC-MAIN-2001-05", "00")
    path = newest.folder("scored_pairs") / "part-00000.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.append_column("score_mark", pa.array([0.5] * 40, pa.float32())), path)
    newest.manifest("scored_pairs", [])
    catalog = tmp_path / "catalog.duckdb"
    build_catalog(own, catalog)
    assert query(catalog, "from scored limit 0").schema.names[-1] == "score_mark"
    by_crawl = "select crawl, count(*), avg(score_mark) from scored {} group by all order by all"
    assert _rows(catalog, by_crawl.format("")) == [
        ("CC-MAIN-2000-05", 80, None),
        ("CC-MAIN-2001-05", 40, 0.5),
    ]
    # Partitions of the one or of the other kind alone are read alike.
    for crawl, mean in (("CC-MAIN-2000-05", None), ("CC-MAIN-2001-05", 0.5)):
        where = by_crawl.format(f"where crawl = '{crawl}'")
        assert [row[2] for row in _rows(catalog, where)] == [mean]


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


def test_a_stages_first_partition_appears_without_a_new_catalog(lake: Path, tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    catalog = tmp_path / "catalog.duckdb"
    build_catalog(tmp_path / "lake", catalog)
    assert _rows(catalog, "select samples from resolution_table()") == [(0,)] * 7
    files = SegmentFiles(tmp_path / "lake", "CC-MAIN-2000-05", "00")
    files.write()
    files.stats()
    assert _rows(catalog, "from resolution_table() limit 1")[0][1] == 24
    full = tmp_path / "full.duckdb"
    build_catalog(lake, full)
    for view in VIEWS:
        found = query(catalog, f"from {view}").schema
        assert set(found.names) == set(query(full, f"from {view} limit 0").schema.names), view


def test_partitions_from_before_a_new_column_are_read_with_later_ones(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    for segment in ("00", "01"):
        SegmentFiles(lake, "CC-MAIN-2000-05", segment).write()
    first = SegmentFiles(lake, "CC-MAIN-2000-05", "00")
    part = first.folder("filtered_subset") / "part-00000.parquet"
    pq.write_table(pq.ParquetFile(part).read().drop_columns(["md5"]), part)
    first.manifest("filtered_subset", [])
    build_catalog(lake, tmp_path / "catalog.duckdb")
    sql = "select count(*), count(md5) from subset"
    assert _rows(tmp_path / "catalog.duckdb", sql) == [(48, 24)]


def test_partitions_that_are_not_asked_for_are_not_opened(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    for crawl, segment in SEGMENTS:
        SegmentFiles(lake, crawl, segment).write()
    catalog = tmp_path / "catalog.duckdb"
    build_catalog(lake, catalog)
    for part in lake.glob("filtered_subset/crawl=CC-MAIN-2000-05/segment=01/*.parquet"):
        part.write_bytes(b"not parquet at all")
    with pytest.raises(QueryError, match="part-00000"):
        query(catalog, "select sum(WIDTH) from subset")
    where = "where crawl = 'CC-MAIN-2000-05' and segment = '00'"
    assert _rows(catalog, f"select count(WIDTH) from subset {where}") == [(24,)]
    sql = "from resolution_table(crawls := 'CC-MAIN-2001-*') limit 1"
    assert _rows(catalog, sql)[0][1] == 24


def test_a_query_sees_a_partition_whole_while_it_is_replaced_repeatedly(tmp_path: Path) -> None:
    """A publisher in another process replaces a partition as often as it can: no query fails."""
    lake = tmp_path / "lake"
    first = SegmentFiles(lake, "CC-MAIN-2000-05", "00")
    first.write()
    build_catalog(lake, lake / "catalog" / "catalog.duckdb")
    part = first.folder("filtered_subset") / "part-00000.parquet"
    shutil.copyfile(part, tmp_path / "rows.parquet")
    publisher = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(lake), str(tmp_path / "rows.parquet")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert publisher.stdout
        assert publisher.stdout.readline() == "published\n"
        scanned, counted, by_path = set(), set(), set()
        turns, patience = 0, time.monotonic() + PATIENCE_S
        # Which of the two states a question meets is chance: ask on until both have been met.
        while turns < 8 or (min(len(scanned), len(counted)) < 2 and time.monotonic() < patience):
            turns += 1
            sql = "select count(*), sum(WIDTH), count(distinct md5) from subset"
            scanned |= set(_rows(lake / "catalog" / "catalog.duckdb", sql))
            sql = "select count(*) from subset"
            counted |= set(_rows(lake / "catalog" / "catalog.duckdb", sql))
            try:
                sql = f"select count(*) from '{lake}/filtered_subset/*/*/*.parquet'"
                by_path |= set(_rows(lake / "catalog" / "catalog.duckdb", sql))
            except QueryError as error:  # rather than a mixture
                assert "by their paths" in str(error)  # noqa: PT017
    finally:
        publisher.kill()
        publisher.communicate()
    assert by_path <= {(24,), (72,)}
    assert counted == {(24,), (72,)} == {row[:1] for row in scanned}, "one part, or three"
    assert len(scanned) == 2


def _replacing(
    files: SegmentFiles, rows: Path, parts: Iterator[int], view: str
) -> Callable[[duckdb.DuckDBPyConnection], list[tuple[object, ...]]]:
    """A question of a view during which the subset is replaced by another number of equal parts."""

    def question(connection: duckdb.DuckDBPyConnection) -> list[tuple[object, ...]]:
        key, number = SegmentKey(files.crawl, files.segment), next(parts)
        with LocalLake.at(files.lake).publish(
            "filtered_subset", key, inputs={}, code_version=str(number)
        ) as staging:
            for part in range(number):
                shutil.copyfile(rows, part_path(staging.path, part))
        return connection.sql(f"select count(*), count(distinct SAMPLE_ID) from {view}").fetchall()

    return question


def ask_while_replacing(lake: Path) -> list[object]:
    """Answers to questions under which the subset is replaced each time."""
    files, other = (SegmentFiles(lake, *segment) for segment in SEGMENTS[:2])
    files.write()
    other.write()
    catalog = lake / "catalog" / "catalog.duckdb"
    build_catalog(lake, catalog)
    rows = Path(shutil.copyfile(part_path(files.folder("filtered_subset"), 0), lake / "rows"))
    parts = iter([3, 1, 2, 4, 5])
    return [
        ask(catalog, _replacing(files, rows, parts, "subset")),
        ask(catalog, _replacing(files, rows, parts, "scored"), {"scored"}),
        list(parts),
    ]


ANSWERS: Final[list[object]] = [[(3 * 24 + 24, 48)], [(80, 80)], [4, 5]]
"""The first question was asked twice, the second time of what the first one left; the second one
once, since nothing that it reads was replaced."""


def test_what_is_replaced_under_every_question_is_held_open(tmp_path: Path) -> None:
    assert ask_while_replacing(tmp_path) == ANSWERS
    assert not (tmp_path / ".snapshots").exists()


@pytest.mark.parametrize("can_write", [True, False])
def test_more_files_than_may_be_held_open_are_linked_in_the_lake(
    tmp_path: Path, can_write: bool
) -> None:
    snapshots = tmp_path / ".snapshots"
    if can_write:
        for name in ("new", "left by a killed process"):
            (snapshots / name / "filtered_subset").mkdir(parents=True)
        os.utime(snapshots / "left by a killed process", (0, 0))
    else:
        snapshots.touch()
    code = (
        "import pathlib, resource, sys; from tests.stats.test_catalog import ask_while_replacing; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300)); "
        "print(ask_while_replacing(pathlib.Path(sys.argv[1])))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    if can_write:
        assert ran.stdout == f"{ANSWERS}\n", ran.stderr
        assert [path.name for path in snapshots.iterdir()] == ["new"]
    else:
        assert "no snapshot of them can be made: [Errno 17] File exists" in ran.stderr


PUBLISHER = """
import itertools, shutil, sys, time
from pathlib import Path
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey

lake, key = LocalLake.at(Path(sys.argv[1])), SegmentKey("CC-MAIN-2000-05", "00")
for turn in itertools.count():
    with lake.publish("filtered_subset", key, inputs={}, code_version=str(turn)) as staging:
        for number in range(1 if turn % 2 else 3):
            shutil.copyfile(sys.argv[2], staging.path / f"part-{number:05d}.parquet")
    if turn == 1:
        print("published", flush=True)
    time.sleep(0.05)
"""


def test_macros_count_as_numpy_does(lake: Path, catalog: Path) -> None:
    subset = query(catalog, "from subset").to_pandas()
    authorities = subset["URL"].str.split("/").str[2].value_counts()
    found = _rows(catalog, "from top_hosts(2)")
    assert found == [(host, 24, pytest.approx(1 / 3)) for host in ("a.test", "b.test")]
    assert authorities.to_dict() == {"a.test": 24, "b.test": 24, "c.test": 24}

    counts, edges = np.histogram(subset["similarity"], bins=7)
    found = _rows(catalog, "select low, high, samples from similarity_histogram(7)")
    assert [row[2] for row in found] == counts[counts > 0].tolist()
    assert [row[0] for row in found] == pytest.approx(edges[:-1][counts > 0])
    assert _rows(catalog, "select samples from similarity_histogram(1)") == [(72,)]

    found = _rows(catalog, "select low, samples, up_to from caption_lengths(7)")
    by_length = (subset["TEXT"].str.len() // 7 * 7).value_counts().sort_index()
    assert [(low, n) for low, n, _ in found] == list(by_length.items())
    assert found[-1][2] == 1

    images = subset.groupby("sha256").size().sort_values()
    found = _rows(catalog, "select sha256, samples from dup_images()")
    assert dict(found) == images[images > 1].to_dict()
    assert sorted({n for _, n in found}) == [3, 6], "one image of each row, in three segments"


def test_macros_ask_the_given_view_and_crawls(catalog: Path) -> None:
    assert _rows(catalog, "from resolution_table(view := 'scored') limit 1")[0][1] == 120
    assert _rows(catalog, "from languages('pairs')") == [
        ("en", 162, pytest.approx(0.9)),
        ("de", 18, pytest.approx(0.1)),
    ]
    one = "crawls := 'CC-MAIN-2001-05'"
    assert _rows(catalog, f"select sum(samples) from licences({one})") == [(24,)]
    assert _rows(catalog, f"select n from funnel({one}) where reason = 'http_4xx'") == [(10,)]
    assert _rows(catalog, f"select distinct partitions from throughput({one})") == [(1,)]


def test_the_funnel_comes_in_the_order_of_the_stages_with_meanings(catalog: Path) -> None:
    rows = _rows(catalog, "from funnel()")
    assert list(dict.fromkeys(stage for stage, *_ in rows)) == list(STAGES)
    assert all(meaning for *_, meaning in rows)
    pairs = [(reason, n, share) for stage, reason, n, share, _ in rows if stage == "pairs"]
    assert [reason for reason, *_ in pairs] == ["in", "kept", "no_alt", "alt_too_short"]
    assert sum(share for _, _, share in pairs[1:]) == pytest.approx(1)


def test_a_sample_is_the_same_for_the_same_seed(catalog: Path) -> None:
    drawn = [
        _rows(catalog, f"select SAMPLE_ID from sample(10, seed := {seed})") for seed in (0, 0, 1)
    ]
    assert len(drawn[0]) == len(set(drawn[0])) == 10
    assert drawn[0] == drawn[1] != drawn[2]


def test_pairs_around_the_threshold_are_the_nearest_on_either_side(catalog: Path) -> None:
    found = [row[0] for row in _rows(catalog, "select similarity from around_threshold(3)")]
    assert found == pytest.approx([0.3] * 3 + [0.285] * 3), "the pair at 0.29 is tagged NSFW"
    assert _rows(catalog, "select distinct nsfw from around_threshold(30)") == [("UNLIKELY",)]


def test_what_the_recipes_own_conditions_refused_is_not_just_kept(tmp_path: Path) -> None:
    files = SegmentFiles(tmp_path / "lake", *SEGMENTS[0])
    files.write()
    files.stats()
    part = files.folder("filtered_subset") / "part-00000.parquet"
    pq.write_table(pq.ParquetFile(part).read().slice(10), part)
    build_catalog(files.lake, tmp_path / "catalog.duckdb")
    sql = "select similarity from around_threshold(3) where similarity >= 0.3"
    found = [row[0] for row in _rows(tmp_path / "catalog.duckdb", sql)]
    assert found == pytest.approx([0.365, 0.355, 0.35]), "the pair at 0.36 is UNSURE"


def test_columns_of_one_name_get_distinct_names(catalog: Path) -> None:
    table = query(catalog, "select 1 as a, 2 as a, 3 as a_1, 4 as a")
    assert table.to_pylist() == [{"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}]


HARD = (
    "select 1 as a, 2 as a, sum(WIDTH) as s, 0.5::decimal(4, 2) as d, [1.0, 'nan'::double] as l, "
    "{'x': 'inf'::float, 'y': 'ä'} as m, 'ab'::blob as b, interval 1 day as i, true as t, "
    "date '2020-01-02' as day, null as n, max(similarity) > 0 as f from subset"
)


def test_every_value_has_its_json_csv_and_cell(
    catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sql", "--catalog", str(catalog), HARD]
    assert main([*words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    total = query(catalog, "select cast(sum(WIDTH) as int) as s from subset")["s"][0].as_py()
    assert (row["a"], row["a_1"], row["s"], row["d"]) == (1, 2, total, 0.5)
    assert (row["l"], row["m"]) == ([1.0, None], {"x": None, "y": "ä"})
    assert (row["b"], row["t"], row["day"], row["n"]) == ("6162", True, "2020-01-02", None)
    assert main([*words, "--csv"]) == 0
    (cells,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert json.loads(cells["l"]) == [1.0, None]
    assert (cells["a"], cells["a_1"], cells["s"], cells["b"]) == ("1", "2", str(total), "6162")
    assert main(words) == 0
    assert capsys.readouterr().out.split()[:3] == ["a", "a_1", "s"]


def test_an_older_duckdb_than_pythons_can_open_the_catalog(catalog: Path) -> None:
    """Files carry a storage version: DuckDB 1.2 reads up to 65, 1.4 up to 67, 1.5 up to 68."""
    header = catalog.read_bytes()[:20]
    assert header[8:12] == b"DUCK"
    assert int.from_bytes(header[12:20], "little") <= 65


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


def test_a_missing_catalog_and_a_bad_path_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="materialize the asset"):
        query(tmp_path / "catalog.duckdb", "select 1")
    with pytest.raises(ValueError, match="cannot be in a view"):
        build_catalog(tmp_path / "a*b", tmp_path / "catalog.duckdb")
    with pytest.raises(ValueError, match="cannot be in a view"):
        build_catalog(tmp_path / "crawl=x" / "lake", tmp_path / "catalog.duckdb")


def test_a_lake_that_was_moved_to_where_its_path_is_a_key_is_refused(tmp_path: Path) -> None:
    SegmentFiles(tmp_path / "lake", *SEGMENTS[0]).write()
    build_catalog(tmp_path / "lake", tmp_path / "lake" / "catalog" / "catalog.duckdb")
    (tmp_path / "lake").rename(tmp_path / "crawl=x")
    with pytest.raises(ValueError, match="cannot be in a view"):
        query(tmp_path / "crawl=x" / "catalog" / "catalog.duckdb", "select 1")
