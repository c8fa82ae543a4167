from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from laion_assets.assets.outside import observations, read_lists
from laion_assets.lake import Lake, LakeOptions
from resources.lake import LakeResource
from sensors.lists import lists_sensor


def evaluate(lake: Path, cursor: str | None) -> dg.SensorResult | dg.SkipReason:
    context = dg.build_sensor_context(
        cursor=cursor, resources={"lake": LakeResource(root=str(lake))}
    )
    result = lists_sensor(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def test_a_changed_list_is_told_once(tmp_path: Path) -> None:
    first = evaluate(tmp_path, None)
    assert isinstance(first, dg.SensorResult)
    assert len(first.asset_events) == 2
    assert isinstance(evaluate(tmp_path, first.cursor), dg.SkipReason)

    (tmp_path / "removals").mkdir()
    (tmp_path / "removals" / "mine.txt").write_text("host:a.test\n")
    second = evaluate(tmp_path, first.cursor)
    assert isinstance(second, dg.SensorResult)
    assert [event.asset_key.path for event in second.asset_events] == [["removals"]]
    assert isinstance(evaluate(tmp_path, second.cursor), dg.SkipReason)


def test_a_list_that_cannot_be_understood_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "blocklists").mkdir()
    (tmp_path / "blocklists" / "bad.txt").write_text("what is this\n")
    with pytest.raises(dg.Failure, match=r"bad\.txt:1"):
        evaluate(tmp_path, None)


def test_an_observation_carries_the_lists_version(tmp_path: Path) -> None:
    lists = read_lists(Lake(LakeOptions(root=str(tmp_path))))
    for event in observations(lists, {}):
        version = lists.data_versions[event.asset_key.path[-1]]
        assert version in (event.tags or {}).values()
    assert observations(lists, lists.data_versions) == []
