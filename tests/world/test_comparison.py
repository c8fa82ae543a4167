"""The settings' recipes compared on the sample world, with what a person overrides for one run."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from laion_assets.comparison.pool import are_held_out
from laion_assets.comparison.result import ALL, MATCHING, RANDOM, SHUFFLED, Comparison
from laion_assets.layout import FILTERED_SUBSET, NEAR_DUPLICATES, SCORED_PAIRS, partition_of
from laion_assets.tables import read_parquet
from tests.world.conftest import World

FEW: Final = {
    "held_out_share": 0.3,
    "least": 20,
    "batch": 20,
    "samples": 100,
    "steps": 20,
    "width": 16,
    "device": "cpu",
}


def column(world: World, asset: str, name: str) -> list[Any]:
    """A column of all segments of an asset, in order."""
    return [
        value
        for key in world.keys
        for part in partition_of(asset).rows.paths(world.lake.folder(asset, key))
        for value in read_parquet(part, [name])[name].to_pylist()
    ]


def test_the_recipes_of_the_world_are_compared(world: World) -> None:
    config = {"resources": {"comparison": {"config": FEW}}}
    assert world.run("comparison", run_config=config).success
    found = Comparison.read(world.lake.published("recipe_comparison"))
    names = [arm.name for arm in found.arms]
    assert names == ["laion400m v1", "laion5b-en v1", "portraits v1", "random", SHUFFLED]
    assert found.control_holds

    samples = column(world, NEAR_DUPLICATES, "SAMPLE_ID")
    assert samples == column(world, SCORED_PAIRS, "SAMPLE_ID")
    pictures = np.array(column(world, NEAR_DUPLICATES, "cluster"))
    content = column(world, SCORED_PAIRS, "sha256")
    of_content = set(zip(content, pictures.tolist(), strict=True))
    assert len(set(content)) == len(of_content), "the same bytes are one picture"
    held_out = are_held_out(pictures, found.options["held_out_share"])
    trained = {sample for sample, held in zip(samples, held_out, strict=True) if not held}
    pairs = {arm.name: arm.pairs for arm in found.arms}
    assert pairs[RANDOM] == pairs[SHUFFLED] == len(trained)
    subset = column(world, FILTERED_SUBSET, "SAMPLE_ID")
    assert pairs["laion400m v1"] == len(trained.intersection(subset)), "what the subset takes"
    assert found.samples == min(100, *pairs.values())
    searched = {one.name: one.pairs for one in found.held_out}
    assert searched[MATCHING] < searched[ALL] <= len(set(pictures[held_out].tolist()))

    metadata = world.lake.manifest("recipe_comparison").metadata
    assert metadata["segments"] == len(world.keys)
    assert metadata["options"]["samples"] == 100
