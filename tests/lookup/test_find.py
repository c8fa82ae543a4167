"""Which partitions may hold a row, and which tables look-ups cannot answer for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from laion_assets.lake import LocalLake
from laion_assets.layout import IMAGE_SHARDS, PAIR_PARQUET, SegmentKey
from laion_assets.lookup.find import Partitions
from laion_assets.lookup.write import FILES, write_lookups
from laion_assets.stats.question import ask
from tests.stats.conftest import SEGMENTS, SegmentFiles

KEYS = [SegmentKey(*segment) for segment in SEGMENTS]


@pytest.fixture
def segments(tmp_path: Path) -> list[SegmentFiles]:
    made = [SegmentFiles(tmp_path / "lake", *segment) for segment in SEGMENTS]
    for segment in made:
        segment.write()
        for asset in FILES:
            write_lookups(asset, segment.folder(asset))
    return made


def test_a_url_is_looked_up_in_all_segments(segments: list[SegmentFiles]) -> None:
    found = Partitions(LocalLake.at(segments[0].lake))
    assert sorted(found.keys(PAIR_PARQUET)) == KEYS
    for asset in ("pair_parquet", "image_shards", "filtered_subset"):
        assert asset in found.assets(KEYS[1])
    sought = ask(segments[1].pairs[44]["url"]).sought(PAIR_PARQUET)
    rows, without = found.candidates(PAIR_PARQUET, sought)
    assert {key: numbers.tolist() for key, numbers in rows.items()} == {KEYS[1]: [44]}
    assert without == []
    assert found.candidates(PAIR_PARQUET, {}) == ({}, [])
    only = Partitions(LocalLake.at(segments[0].lake), KEYS[:1])
    assert only.candidates(PAIR_PARQUET, sought) == ({}, [])


def test_a_partition_without_a_look_up_is_named(segments: list[SegmentFiles]) -> None:
    (segments[2].folder(IMAGE_SHARDS) / "_lookup" / "sha256").unlink()
    found = Partitions(LocalLake.at(segments[0].lake))
    rows, without = found.candidates(IMAGE_SHARDS, ask("0" * 64).sought(IMAGE_SHARDS))
    assert (rows, without) == ({}, KEYS[2:])
    assert found.candidates(IMAGE_SHARDS, ask("md5:" + "0" * 32).sought(IMAGE_SHARDS)) == ({}, [])


def test_a_table_older_than_what_it_was_made_of_is_scanned(segments: list[SegmentFiles]) -> None:
    lake = LocalLake.at(segments[0].lake)
    assert Partitions(lake).scanned == {}
    for number, asset in ((0, "unique_pairs"), (1, "embeddings")):
        manifest = segments[number].folder(asset) / "_manifest.json"
        about = manifest.stat()
        os.utime(manifest, ns=(about.st_atime_ns, about.st_mtime_ns + 10**12))
    assert Partitions(lake).scanned == {KEYS[0]: {"image_shards"}, KEYS[1]: {"scored_pairs"}}
    # Both were only made again with the same result, as the one manifest shows.
    manifest = segments[1].folder("scored_pairs") / "_manifest.json"
    content = json.loads(manifest.read_text())
    content["metadata"]["made_of"] = {"embeddings": "d"}
    manifest.write_text(json.dumps(content))
    os.utime(manifest, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert Partitions(lake).scanned == {KEYS[0]: {"image_shards"}}


def test_a_table_without_what_it_was_made_of_is_scanned(segments: list[SegmentFiles]) -> None:
    (segments[0].folder(PAIR_PARQUET) / "_manifest.json").unlink()
    assert Partitions(LocalLake.at(segments[0].lake)).scanned == {KEYS[0]: {"unique_pairs"}}
