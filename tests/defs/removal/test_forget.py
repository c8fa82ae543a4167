"""Dagster's event log does not keep what earlier materializations showed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from laion_assets.defs.partitions import partition_key, segment_partitions
from laion_assets.defs.removal.forget import forget_superseded
from laion_assets.layout import SegmentKey

KEYS = [SegmentKey("CC-MAIN-2000-05", name) for name in ("00", "01")]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.add_dynamic_partitions("crawls", [KEYS[0].crawl])
        yield instance


def make(instance: dg.DagsterInstance, shown: str) -> None:
    """Materialize an asset of both segments and one over all, which show a text."""

    @dg.asset(partitions_def=segment_partitions(2))
    def by_segment() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"preview": shown})

    @dg.asset
    def over_all() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata={"preview": shown})

    for key in KEYS:
        assert dg.materialize(
            [by_segment], instance=instance, partition_key=partition_key(key)
        ).success
    assert dg.materialize([over_all], instance=instance).success


def occurrences(folder: Path, word: str) -> list[str]:
    """Files that hold a word, each as often as it does."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file()
        for _ in range(path.read_bytes().count(word.encode()))
    ]


def test_superseded_materializations_of_a_segment_are_deleted_to_the_byte(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    make(instance, "the-sample-that-left")
    assert forget_superseded(instance, KEYS[:1]) == 0
    make(instance, "what-remains")
    shown = occurrences(tmp_path, "the-sample-that-left")
    assert shown
    assert forget_superseded(instance, KEYS[:1]) == 2
    left = occurrences(tmp_path, "the-sample-that-left")
    assert 0 < len(left) < len(shown), "the other segment's"
    assert forget_superseded(instance, KEYS) == 1
    assert occurrences(tmp_path, "the-sample-that-left") == []
    for asset, n in (("by_segment", 2), ("over_all", 1)):
        records = instance.fetch_materializations(dg.AssetKey(asset), limit=10).records
        assert len(records) == n
        assert "what-remains" in str(records)
    assert forget_superseded(instance, KEYS) == 0
    assert len(instance.get_runs()) == 6
