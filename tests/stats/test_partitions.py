from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from laion_assets.stats.catalog import build_catalog, query
from laion_assets.stats.partitions import TABLES
from tests.stats.conftest import SEGMENTS, SegmentFiles, counts

Rows = Mapping[str, list[tuple[Any, ...]]]


@pytest.fixture
def files(tmp_path: Path) -> list[SegmentFiles]:
    """Two segments of a lake; the third one's files are there to be written."""
    segments = [SegmentFiles(tmp_path / "lake", *segment) for segment in SEGMENTS]
    for segment in segments[:2]:
        segment.write()
    return segments


def _tables(catalog: Path) -> Rows:
    with duckdb.connect(str(catalog), read_only=True) as connection:
        return {name: connection.execute(f"from {name} order by all").fetchall() for name in TABLES}


def _manifest(files: SegmentFiles, asset: str) -> Path:
    return files.folder(asset) / "_manifest.json"


def test_partitions_files_and_counts_are_those_of_the_manifests(
    files: list[SegmentFiles], tmp_path: Path
) -> None:
    build_catalog(files[0].lake, tmp_path / "c.duckdb")
    where = "where segment = '00' and asset = 'image_shards'"
    (partition,) = query(tmp_path / "c.duckdb", f"from partitions {where}").to_pylist()
    assert (partition["rows"], partition["n_in"], partition["kept"]) == (55, 55, 40)
    assert partition["started"].isoformat() == "2026-01-02T02:04:05", "UTC"
    assert json.loads(partition["metadata"]) == {}
    found = query(tmp_path / "c.duckdb", f"from files {where} order by name").to_pylist()
    assert [(row["view"], row["name"], row["rows"]) for row in found] == [
        ("images", "00000.parquet", 55),
        ("fetches", "_ledger/00000.parquet", 55),
    ]
    path = files[0].folder("image_shards") / "00000.parquet"
    assert found[0]["bytes"] == path.stat().st_size
    assert found[0]["columns"].startswith("caption string, crawl string, error_message string")
    found = query(tmp_path / "c.duckdb", f"from counts {where} order by place").to_pylist()
    assert [(row["stage"], row["reason"], row["n"]) for row in found] == [
        ("images", "in", 55),
        ("images", "kept", 40),
        ("images", "http_4xx", 10),
        ("images", "too_small", 5),
    ]


def test_rows_that_an_older_manifest_lacks_are_counted_in_the_file(
    files: list[SegmentFiles], tmp_path: Path
) -> None:
    build_catalog(files[0].lake, tmp_path / "with.duckdb")
    path = _manifest(files[0], "pair_parquet")
    manifest = json.loads(path.read_text())
    for item in manifest["files"]:
        del item["rows"], item["columns"]
    path.write_text(json.dumps(manifest))
    build_catalog(files[0].lake, tmp_path / "without.duckdb")
    there, here = (_tables(tmp_path / f"{name}.duckdb") for name in ("with", "without"))
    assert here["files"] == there["files"]


def test_only_the_manifests_of_what_has_changed_are_read(
    files: list[SegmentFiles], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.duckdb", tmp_path / "second.duckdb"
    build_catalog(files[0].lake, first)
    before, known = first.read_bytes(), _tables(first)
    unread = _manifest(files[0], "embeddings")
    about = unread.stat()
    unread.write_text("not JSON")
    os.utime(unread, ns=(about.st_atime_ns, about.st_mtime_ns))
    files[1].manifest("filtered_subset", [counts("subset", 24, {"below_threshold": 17})])
    shutil.rmtree(files[1].folder("unique_pairs"))
    files[2].write()
    build_catalog(files[0].lake, second, previous=first)
    assert first.read_bytes() == before
    shutil.rmtree(unread.parent)
    build_catalog(files[0].lake, tmp_path / "new.duckdb")
    here, new = _tables(second), _tables(tmp_path / "new.duckdb")
    key = ("embeddings", files[0].crawl, files[0].segment)
    for name in TABLES:
        of_unread = [row for row in known[name] if row[:3] == key]
        assert of_unread
        assert Counter(here[name]) == Counter([*new[name], *of_unread]), name


@pytest.mark.parametrize("content", ["", "not a database", "other tables"])
def test_a_catalog_that_is_none_of_ours_is_not_taken_over(
    files: list[SegmentFiles], tmp_path: Path, content: str
) -> None:
    previous = tmp_path / "previous.duckdb"
    previous.write_text(content)
    if content == "other tables":
        previous.unlink()
        with duckdb.connect(str(previous)) as connection:
            connection.execute("create table lake as select '/lake' as root, 'x' as layout")
    summary = build_catalog(files[0].lake, tmp_path / "c.duckdb", previous=previous)
    assert summary["partitions"] == 12
    assert summary["views"]["subset"] == 48


def test_the_same_data_is_the_same_version_whatever_the_run(
    files: list[SegmentFiles], tmp_path: Path
) -> None:
    def made_of() -> str:
        return str(build_catalog(files[0].lake, tmp_path / "c.duckdb")["made_of"])

    before = made_of()
    path = _manifest(files[0], "filtered_subset")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"run_id": "another", "seconds": 2.5}))
    assert made_of() == before
    path.write_text(json.dumps(manifest | {"data_version": "e"}))
    assert made_of() != before


def test_a_partition_that_lacks_a_file_is_left_out_until_it_is_whole(
    files: list[SegmentFiles], tmp_path: Path
) -> None:
    path = _manifest(files[0], "pair_parquet")
    manifest = json.loads(path.read_text())
    manifest["files"].append({"name": "part-00002.parquet", "bytes": 1, "sha256": "0"})
    path.write_text(json.dumps(manifest))
    catalog = tmp_path / "c.duckdb"
    assert build_catalog(files[0].lake, catalog)["views"]["pairs"] == 60, "the other segment's"
    part = files[0].folder("pair_parquet") / "part-00002.parquet"
    table = pq.ParquetFile(part.with_name("part-00000.parquet")).read()
    pq.write_table(table, part)
    assert build_catalog(files[0].lake, catalog, previous=catalog)["views"]["pairs"] == 150
