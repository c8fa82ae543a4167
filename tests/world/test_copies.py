"""Copies that the sample crawl has of its own pictures are found; look-alikes are no copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import dagster as dg
import pytest

from benchmarks.duplicates.planted import REACHED
from laion_assets.defs.build import build_defs
from laion_assets.layout import FILTERED_SUBSET, NEAR_DUPLICATES, partition_of, subset_asset
from laion_assets.sample_crawl.build import Case, Manifest
from laion_assets.sample_crawl.plan import Plan, kind_of_copy
from laion_assets.schemas import sample_id_of, uid_of
from laion_assets.settings import load_settings
from laion_assets.tables import read_parquet
from tests.world.conftest import World

ONE_OF_EACH = subset_asset("one-of-each")
RECALL = 0.95
"""Goal for the kinds of :data:`REACHED` together."""

Files = dict[int, set[str]]
"""Cluster -> the pictures in it."""


def column(world: World, asset: str, name: str) -> Iterator[int]:
    """A column of all segments of an asset."""
    for key in world.keys:
        for part in partition_of(asset).rows.paths(world.lake.folder(asset, key)):
            yield from read_parquet(part, [name])[name].to_pylist()


@pytest.fixture(scope="module")
def cases(world: World) -> dict[int, Case]:
    """SAMPLE_ID -> its case, of all pairs whose pictures are stored."""
    stored = (case for case in Manifest.read(world.crawl).cases if case.stage == "subset")
    return {sample_id_of(uid_of(case.url, case.text)): case for case in stored}


@pytest.fixture(scope="module")
def cluster_of(world: World) -> dict[int, int]:
    """SAMPLE_ID -> number of its cluster."""
    numbers = column(world, NEAR_DUPLICATES, "cluster")
    return dict(zip(column(world, NEAR_DUPLICATES, "SAMPLE_ID"), numbers, strict=True))


@pytest.fixture(scope="module")
def files(cases: dict[int, Case], cluster_of: dict[int, int]) -> Files:
    assert cluster_of.keys() == cases.keys()
    found: Files = defaultdict(set)
    for sample, case in cases.items():
        found[cluster_of[sample]].add(str(case.file))
    return found


def test_copies_are_in_their_originals_cluster(files: Files) -> None:
    plan = Plan()
    found = {
        file: plan.original(file) in together
        for together in files.values()
        for file in together
        if kind_of_copy(file) in REACHED
    }
    assert {kind_of_copy(file) for file in found} == set(REACHED)
    assert sum(found.values()) >= RECALL * len(found), found


def test_a_copy_is_with_no_other_picture(files: Files) -> None:
    plan = Plan()
    with_copies = [together for together in files.values() if any(map(kind_of_copy, together))]
    assert max(map(len, with_copies)) > 1
    for together in with_copies:
        assert len({plan.original(file) for file in together}) == 1


def test_two_drawings_of_one_thing_are_no_copies(files: Files) -> None:
    """Each family of art has its own; within a family, some things look the same."""
    plan = Plan()
    for together in files.values():
        families = {plan.original(file).partition("/")[0] for file in together} - {"special"}
        assert len(families) <= 1, together


@pytest.fixture(scope="module")
def one_of_each(copy: World) -> World:
    """The world with a further subset, of one image of each cluster."""
    heading = "[subsets]\n"
    config = copy.config.read_text()
    assert heading in config
    more = f'{heading}one-of-each = {{ duplicates = "images" }}\n'
    copy.config.write_text(config.replace(heading, more))
    settings = load_settings(copy.config)
    world = replace(copy, settings=settings, defs=build_defs(settings))
    subset = [dg.AssetKey(ONE_OF_EACH)]
    for key in world.keys:
        assert world.run("segment", str(key), asset_selection=subset).success
    return world


def test_a_recipe_takes_one_of_each_cluster(one_of_each: World, cluster_of: dict[int, int]) -> None:
    def taken(asset: str) -> Counter[int]:
        return Counter(cluster_of[sample] for sample in column(one_of_each, asset, "SAMPLE_ID"))

    every = taken(FILTERED_SUBSET)
    assert max(every.values()) > 1
    assert taken(ONE_OF_EACH) == dict.fromkeys(every, 1)
