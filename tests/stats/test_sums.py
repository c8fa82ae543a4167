from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from laion_assets import schemas
from laion_assets.stats.catalog import build_catalog, open_catalog
from laion_assets.stats.near import AROUND
from laion_assets.tables import read_parquet, write_table
from tests.stats.conftest import SEGMENTS, SegmentFiles

FIRST, SECOND, OTHER = SEGMENTS


@pytest.fixture
def own(lake: Path, tmp_path: Path) -> Path:
    """A copy of the lake, with its catalog, for a test to change."""
    root = shutil.copytree(lake, tmp_path / "lake")
    build_catalog(root, tmp_path / "before.duckdb")
    return root


def statistics_of(root: Path, key: tuple[str, str]) -> Path:
    return SegmentFiles(root, *key).folder("segment_stats") / "statistics.parquet"


def sums(catalog: Path) -> list[Any]:
    with open_catalog(catalog) as connection:
        return connection.execute("from sums order by all").fetchall()


def after(own: Path) -> list[Any]:
    """The sums of a catalog that is made from the earlier one."""
    out = own.parent / "after.duckdb"
    build_catalog(own, out, previous=own.parent / "before.duckdb")
    return sums(out)


def from_nothing(own: Path) -> list[Any]:
    build_catalog(own, own.parent / "anew.duckdb")
    return sums(own.parent / "anew.duckdb")


def spoil(root: Path, key: tuple[str, str]) -> None:
    """Empty a segment's statistics. Its partition counts as the same one."""
    write_table(statistics_of(root, key), schemas.STATISTICS.empty_table())


def replace(root: Path, key: tuple[str, str]) -> None:
    files = SegmentFiles(root, *key)
    rows = read_parquet(files.folder("pair_parquet") / "part-00000.parquet").to_pylist()
    languages = [row | {"language": "fr"} for row in rows]
    files.table("pair_parquet", "part-00000.parquet", languages, schemas.PAIRS)
    files.stats()


def test_sums_are_those_of_each_crawls_segments(own: Path) -> None:
    wanted: Counter[tuple[Any, ...]] = Counter()
    for key in SEGMENTS:
        for row in read_parquet(statistics_of(own, key)).to_pylist():
            if row["kind"] in ("histogram", "top"):
                of = (row["kind"], row["stage"], row["metric"])
                wanted[key[0], *of, row["bin_low"], row["bin_high"], row["value"]] += row["n"]
    found = {
        (crawl, *of): n
        for crawl, segment, *of, n in sums(own.parent / "before.duckdb")
        if segment is None
    }
    assert found == wanted
    assert found["CC-MAIN-2000-05", "top", "pairs", "host", None, None, "a.test"] == 40


def test_a_crawl_keeps_the_pairs_nearest_to_the_threshold(own: Path) -> None:
    nearest = [row for row in sums(own.parent / "before.duckdb") if row[2] == "nearest"]
    counted = Counter((crawl, metric) for crawl, _, _, _, metric, *_ in nearest)
    assert set(counted.values()) == {AROUND, 9}, "one segment has nine that can be shown below"
    both = [row for row in nearest if (row[0], row[4]) == (FIRST[0], "above")]
    assert {row[1] for row in both} == {"00", "01"}
    assert max(row[5] for row in both) < 0.35, "the farther ones of either segment are left out"


def test_an_unchanged_lake_is_not_read_again(own: Path) -> None:
    before = sums(own.parent / "before.duckdb")
    for key in SEGMENTS:
        spoil(own, key)
    assert after(own) == before
    assert from_nothing(own) == []


def test_a_new_segment_is_added_to_its_crawl(own: Path) -> None:
    new = SegmentFiles(own, OTHER[0], "01")
    new.write()
    new.stats()
    wanted = from_nothing(own)
    for key in SEGMENTS:
        spoil(own, key)
    assert after(own) == wanted


def test_a_replaced_segments_crawl_is_added_up_again(own: Path) -> None:
    replace(own, FIRST)
    wanted = from_nothing(own)
    assert wanted != sums(own.parent / "before.duckdb")
    spoil(own, OTHER)
    assert after(own) == wanted
    spoil(own, SECOND)
    assert after(own) != wanted, "a sum cannot be taken apart"


def test_a_segment_that_is_gone_is_in_no_sum(own: Path) -> None:
    shutil.rmtree(SegmentFiles(own, *SECOND).folder("segment_stats"))
    shutil.rmtree(SegmentFiles(own, *OTHER).folder("segment_stats"))
    wanted = from_nothing(own)
    assert {row[0] for row in wanted} == {FIRST[0]}
    assert after(own) == wanted


def test_a_catalog_from_before_there_were_sums_is_added_to(own: Path) -> None:
    wanted = sums(own.parent / "before.duckdb")
    with duckdb.connect(str(own.parent / "before.duckdb")) as connection:
        connection.execute("drop table sums")
    assert after(own) == wanted
