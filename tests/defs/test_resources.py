"""The options that a run gets, those that Dagster's configuration does not hold included."""

from __future__ import annotations

import dagster as dg

from laion_assets.lake import LakeOptions
from resources.lake import LakeResource

LAKE = LakeResource.of(LakeOptions(root="here", storage_options={"endpoint": "http://a.test"}))


def options_in_a_run(config: dict[str, object]) -> LakeOptions:
    seen: list[LakeOptions] = []

    @dg.asset
    def looks(lake: LakeResource) -> None:
        seen.append(lake.options())

    run_config = {"resources": {"lake": {"config": config}}} if config else None
    done = dg.materialize([looks], resources={"lake": LAKE}, run_config=run_config)
    assert done.success
    return seen[0]


def test_a_run_gets_the_masked_options_too() -> None:
    options = options_in_a_run({})
    assert (options.root, options.storage_options) == ("here", {"endpoint": "http://a.test"})


def test_a_run_may_override_them() -> None:
    options = options_in_a_run({"root": "there", "storage_options": {"endpoint": "http://b.test"}})
    assert (options.root, options.storage_options) == ("there", {"endpoint": "http://b.test"})
