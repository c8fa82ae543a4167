"""The report's near-duplicates: numbers from manifests, and which clusters are shown."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from laion_assets.layout import SegmentKey
from laion_assets.stats.clusters import clusters_shown, copies
from laion_assets.stats.partitions import create_tables
from laion_assets.tables import part_path, write_table

KEYS = [SegmentKey("CC-MAIN-2021-01", segment) for segment in ("00", "01")]


@pytest.fixture
def connection(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    create_tables(connection)
    connection.execute(f"set variable lake = '{tmp_path}'")
    for key, n in zip(KEYS, (1, 4), strict=True):
        metadata = json.dumps({"images": 10, "clusters": 10 - n, "copies": n, "foreign": 0})
        connection.execute(
            "insert into partitions by name select 'near_duplicates' as asset, ? as crawl, "
            "? as segment, ? as metadata",
            [key.crawl, key.segment, metadata],
        )
    for asset, view, table in (
        ("near_duplicates", "near_duplicates", near()),
        ("scored_pairs", "scored", scored()),
    ):
        path = part_path(tmp_path / asset / KEYS[1].hive, 0)
        path.parent.mkdir(parents=True)
        write_table(path, table)
        connection.execute(
            'insert into files by name select ? as asset, ? as crawl, ? as segment, ? as "view", '
            "? as name",
            [asset, KEYS[1].crawl, KEYS[1].segment, view, path.name],
        )
    return connection


def near() -> pa.Table:
    return pa.table(
        {
            "SAMPLE_ID": range(8),
            "cluster": [5, 5, 5, 6, 6, 7, 7, 8],
            "first": [False, True, False, True, False, True, False, True],
            "likeness": pa.array([0.98, 1, 0.99, 1, 0.97, 1, 1, 1], pa.float32()),
        }
    )


def scored() -> pa.Table:
    return pa.table(
        {
            "SAMPLE_ID": range(8),
            "url": [f"https://a.test/{number}" for number in range(8)],
            # The two of cluster 7 are the same bytes; one of cluster 6 is not to be shown.
            "sha256": ["a", "b", "c", "d", "e", "f", "f", "g"],
            "nsfw": ["UNLIKELY"] * 4 + ["UNSURE"] + ["UNLIKELY"] * 3,
            "text_names_minors": [False] * 8,
            "shard": pa.array([0] * 8, pa.int32()),
            "key": [f"{number:09d}" for number in range(8)],
        }
    )


def test_numbers_are_of_all_segments(connection: duckdb.DuckDBPyConnection) -> None:
    counted = copies(connection)
    assert (counted.images, counted.clusters, counted.share) == (20, 15, 0.25)


def test_clusters_of_different_images_are_shown_without_tagged_ones(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    shown = clusters_shown(connection)
    assert [(one.cluster, one.first, one.image[-1]) for one in shown] == [
        (1, True, "1"),
        (1, False, "2"),
        (1, False, "0"),
    ]
    assert {one.key for one in shown} == {KEYS[1]}


def test_a_catalog_without_near_duplicates_shows_none() -> None:
    with duckdb.connect() as connection:
        create_tables(connection)
        assert copies(connection).share == 0
        assert clusters_shown(connection) == []
