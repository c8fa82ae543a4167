"""Damage in a copy of the sample world: it is not taken over, and nothing is made of it."""

from __future__ import annotations

import re
from pathlib import Path

import dagster as dg
import pytest

from laion_assets.cli import main
from laion_assets.download.shard_files import shard_of, tar_path
from laion_assets.download.tars import ImageBytes
from laion_assets.filtering.score import CATEGORIES
from laion_assets.lake import Choice, Lake, Verified, find_damage
from laion_assets.layout import (
    EMBEDDINGS,
    FILTERED_SUBSET,
    IMAGE_SHARDS,
    KNN_INDEX,
    PAIR_PARQUET,
    SCORED_PAIRS,
    SEARCH_INDEX,
    SEGMENT_ASSETS,
    partition_of,
)
from laion_assets.tables import read_parquet
from tests.soak.kill_removal import samples
from tests.world.conftest import World


def flip(path: Path, at: int | None = None) -> None:
    """Change a bit of a file, in its middle if it does not matter where."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    # Another file may be a link to it.
    path.unlink()
    path.write_bytes(content)


def damaged(lake: Lake) -> set[str]:
    found = find_damage(lake, Choice().partitions(lake), Verified())
    return {f"{damage.partition.asset}/{damage.name}" for damage in found}


def test_what_was_set_aside_is_made_again_as_it_was(copy: World) -> None:
    lake, key = copy.lake, copy.keys[1]
    before = samples(lake)
    of_key = {asset: lake.manifest(asset, key).data_version for asset in SEGMENT_ASSETS}
    index = lake.manifest(SEARCH_INDEX).data_version
    for asset, pattern in (
        (PAIR_PARQUET, "part-*.parquet"),
        (IMAGE_SHARDS, "_shards/*.tar"),
        (SCORED_PAIRS, "part-*.parquet"),
        (FILTERED_SUBSET, "_img_emb/*.npy"),
        (KNN_INDEX, "image.index"),
        (SEARCH_INDEX, "index.json"),
    ):
        path = next(lake.folder(asset, None if asset == SEARCH_INDEX else key).glob(pattern))
        flip(path)
    verify = ["verify", "--config", str(copy.config)]
    assert main([*verify, "--set-aside"]) == 1
    assert {asset for asset in of_key if not lake.has(asset, key)} == {
        *(PAIR_PARQUET, IMAGE_SHARDS, SCORED_PAIRS, FILTERED_SUBSET, KNN_INDEX)
    }
    assert not lake.has(SEARCH_INDEX)

    assert copy.run("segment", str(key)).success
    assert copy.run("aggregates").success
    assert {asset: lake.manifest(asset, key).data_version for asset in of_key} == of_key
    assert lake.manifest(SEARCH_INDEX).data_version == index
    assert samples(lake) == before
    assert main(verify) == 0


def test_nothing_is_made_of_a_damaged_input(copy: World) -> None:
    lake, key = copy.lake, copy.keys[2]
    part = lake.folder(SCORED_PAIRS, key) / "part-00000.parquet"
    flip(part)
    was = lake.manifest(FILTERED_SUBSET, key)
    selected = [dg.AssetKey(FILTERED_SUBSET)]
    made = copy.run("segment", str(key), asset_selection=selected, raise_on_error=False)
    assert not made.success
    (failed,) = made.get_step_failure_events()
    assert f"{part.name} has another SHA-256" in str(failed.step_failure_data.error)
    assert lake.manifest(FILTERED_SUBSET, key) == was
    flip(part)


def test_a_removal_takes_over_no_damage(
    copy: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(copy.root / "home"))
    lake, key = copy.lake, copy.keys[0]
    before = samples(lake)
    (part,) = partition_of(FILTERED_SUBSET).rows.paths(lake.folder(FILTERED_SUBSET, key))
    removed, other, *_ = read_parquet(part, ["SAMPLE_ID", "key"]).to_pylist()
    tar = tar_path(lake.folder(IMAGE_SHARDS, key), shard_of(other["key"]))
    with ImageBytes(tar) as images:
        flip(tar, tar.read_bytes().index(images.read(other["key"])) + 1000)
    # Not the vectors, which cost most to compute again.
    for path in (
        lake.folder(PAIR_PARQUET, key) / part.name,
        lake.folder(SCORED_PAIRS, key) / CATEGORIES,
    ):
        flip(path)
    damage = {
        PAIR_PARQUET: part.name,
        IMAGE_SHARDS: f"_shards/{tar.name}",
        SCORED_PAIRS: CATEGORIES,
    }
    assert damaged(lake) == {f"{asset}/{name}" for asset, name in damage.items()}

    # Without its rows, a segment's images would get other keys: that needs a person.
    last = copy.keys[3]
    (kept,) = partition_of(IMAGE_SHARDS).rows.paths(lake.folder(IMAGE_SHARDS, last))
    flip(kept)
    in_last = read_parquet(lake.folder(FILTERED_SUBSET, last) / part.name, ["SAMPLE_ID"])
    also = in_last["SAMPLE_ID"][0].as_py()

    command = ["remove", "--config", str(copy.config), "--apply"]
    asked = [word for one in (removed["SAMPLE_ID"], also) for word in ("--sample-id", str(one))]
    assert main([*command, *asked]) == 1
    failed = re.findall(r"the run \S+ for (\S+) did not succeed", capsys.readouterr().err)
    assert set(failed) == {str(last)}
    assert removed["SAMPLE_ID"] not in samples(lake)
    flip(kept)
    assert main(command) == 0
    del before[removed["SAMPLE_ID"]], before[also]
    assert samples(lake) == before
    assert damaged(lake) == set()
    for asset, name in damage.items():
        metadata = lake.manifest(asset, key).metadata
        assert metadata["damaged_files"] == [name]
        assert metadata["damaged_files_made_again"] == 1
    assert lake.manifest(EMBEDDINGS, key).metadata["samples_embedded"] == 0
