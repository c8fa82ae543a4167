"""Damage in a copy of the sample world: nothing is made of it."""

from __future__ import annotations

from pathlib import Path

import dagster as dg

from laion_assets.layout import FILTERED_SUBSET, SCORED_PAIRS
from tests.world.conftest import World


def flip(path: Path) -> None:
    """Change a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    # Another file may be a link to it.
    path.unlink()
    path.write_bytes(content)


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
