"""The settings' recipes compared on the sample world, with what a person overrides for one run."""

from __future__ import annotations

from typing import Final

from laion_assets.comparison.result import SHUFFLED, Comparison
from tests.world.conftest import World

FEW: Final = {
    "held_out_share": 0.3,
    "least": 20,
    "batch": 20,
    "samples": 100,
    "steps": 20,
    "seeds": 2,
    "width": 16,
    "device": "cpu",
}


def test_the_recipes_of_the_world_are_compared(world: World) -> None:
    config = {"resources": {"comparison": {"config": FEW}}}
    assert world.run("comparison", run_config=config).success
    found = Comparison.read(world.lake.published("recipe_comparison"))
    names = [arm.name for arm in found.arms]
    assert names == ["laion400m v1", "laion5b-en v1", "portraits v1", "random", SHUFFLED]
    assert {one.name: one.pairs > 50 for one in found.held_out} == {"all": True, "matching": True}
    for arm in found.arms:
        assert found.samples <= arm.pairs
    metadata = world.lake.manifest("recipe_comparison").metadata
    assert metadata["segments"] == len(world.keys)
    assert metadata["options"]["samples"] == 100
