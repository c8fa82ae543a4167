"""The asset in a lake that changes while it trains. The training itself is a stand-in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from laion_assets.defs.build import build_defs
from laion_assets.generation.dalle import ALL
from laion_assets.generation.evaluation import Evaluation
from laion_assets.generation.options import GenerationOptions
from laion_assets.generation.pairs import LostImageError, Shard
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey
from laion_assets.settings import load_settings
from tests.generation.conftest import MakeShards

FIRST, SECOND, THIRD = (SegmentKey("CC-MAIN-2000-13", number) for number in ("00", "01", "02"))


class Graph:
    """A lake of one's own, and runs of the asset in it."""

    def __init__(
        self, root: Path, shards: list[Shard], tiny: GenerationOptions, patch: pytest.MonkeyPatch
    ) -> None:
        settings = load_settings()
        self.settings = settings.model_copy(
            update={
                "lake": settings.lake.model_copy(update={"root": str(root)}),
                "generation": tiny,
            }
        )
        self.lake = LocalLake(self.settings.lake)
        self.shards = shards
        self.resumed: list[bool] = []
        self.tars: list[Path] = []
        self.meanwhile: Callable[[], None] = lambda: None
        patch.setattr("laion_assets.generation.dalle.make_samples", self._make)

    def _make(self, shards: Sequence[Shard], out: Path, *_: object, **__: object) -> Evaluation:
        self.resumed.append((out / "checkpoint").exists())
        self.tars = [shard.tar for shard in shards]
        (out / "checkpoint").write_text("half of the work")
        self.meanwhile()
        return Evaluation(self.settings.generation, 1, [], [], {ALL: []}, [])

    def publish(self, key: SegmentKey, *assets: str, version: str = "1") -> None:
        for asset in assets or ("filtered_subset", "image_shards"):
            with self.lake.publish(asset, key, inputs={}, code_version=version) as staging:
                (staging.path / "version.txt").write_text(version)
                for shard in self.shards:
                    files = (
                        [shard.part]
                        if asset == "filtered_subset"
                        else [shard.tar, shard.tar.with_suffix(".parquet")]
                    )
                    for file in files:
                        shutil.copy(file, staging.path)

    def run(self, instance: dg.DagsterInstance) -> bool:
        job = build_defs(self.settings).resolve_job_def("generation")
        return job.execute_in_process(instance=instance, raise_on_error=False).success

    def trained_on(self) -> set[str]:
        found: dict[str, Any] = json.loads(
            (self.lake.published("dalle_samples") / "segments.json").read_text()
        )
        return set(found)


@pytest.fixture
def graph(
    tmp_path: Path,
    make_shards: MakeShards,
    tiny: GenerationOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> Graph:
    shards = make_shards(tmp_path / "shards", 1, 12)
    return Graph(tmp_path / "lake", shards, tiny, monkeypatch)


def test_a_lake_that_grows_meanwhile_does_not_stop_the_samples(graph: Graph) -> None:
    graph.publish(FIRST)
    graph.meanwhile = lambda: graph.publish(SECOND)
    with dg.DagsterInstance.ephemeral() as instance:
        assert graph.run(instance)
        assert graph.trained_on() == {str(FIRST)}
        graph.meanwhile = lambda: None
        assert graph.run(instance)
        assert graph.trained_on() == {str(FIRST), str(SECOND)}


def test_a_killed_run_goes_on_with_the_segments_that_it_began_with(graph: Graph) -> None:
    def killed() -> None:
        raise ValueError("the power is gone")

    graph.publish(FIRST)
    graph.meanwhile = killed
    with dg.DagsterInstance.ephemeral() as instance:
        assert not graph.run(instance)
        graph.publish(SECOND)
        assert not graph.run(instance)
        assert graph.resumed == [False, True]
        # What it began with was made anew: nothing of it can be gone on with.
        graph.publish(FIRST, "filtered_subset", version="2")
        graph.meanwhile = lambda: None
        assert graph.run(instance)
        assert graph.resumed == [False, True, False]
        assert graph.trained_on() == {str(FIRST), str(SECOND)}


def test_a_segment_that_is_made_anew_meanwhile_is_begun_with_again(graph: Graph) -> None:
    graph.publish(FIRST)
    graph.meanwhile = lambda: graph.publish(FIRST, "image_shards", version="2")
    with dg.DagsterInstance.ephemeral() as instance:
        assert graph.run(instance)  # by the retry policy
    assert graph.resumed == [False, False]
    told = json.loads((graph.lake.published("dalle_samples") / "segments.json").read_text())
    now = graph.lake.manifest("image_shards", FIRST).data_version
    assert told[str(FIRST)]["image_shards"] == now


def test_whatever_goes_wrong_when_a_segment_was_made_anew_is_tried_again(graph: Graph) -> None:
    def replaced() -> None:
        graph.meanwhile = lambda: None
        graph.publish(FIRST, "image_shards", version="2")
        raise LostImageError("no such image")

    graph.publish(FIRST)
    graph.meanwhile = replaced
    with dg.DagsterInstance.ephemeral() as instance:
        assert graph.run(instance)
    assert graph.resumed == [False, False]


def test_other_weights_under_the_same_path_are_not_gone_on_with(
    graph: Graph, tmp_path: Path
) -> None:
    def killed() -> None:
        raise ValueError("the power is gone")

    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "a.safetensors").write_text("one")
    options = graph.settings.generation.model_copy(update={"vq_weights": str(weights)})
    graph.settings = graph.settings.model_copy(update={"generation": options})
    graph.publish(FIRST)
    graph.meanwhile = killed
    with dg.DagsterInstance.ephemeral() as instance:
        assert not graph.run(instance)
        assert not graph.run(instance)
        (weights / "a.safetensors").write_text("two")
        assert not graph.run(instance)
    assert graph.resumed == [False, True, False]


def test_a_segment_without_images_is_left_out(graph: Graph) -> None:
    graph.publish(FIRST)
    graph.publish(THIRD, "filtered_subset")
    with dg.DagsterInstance.ephemeral() as instance:
        assert graph.run(instance)
        assert graph.trained_on() == {str(FIRST)}
        assert [tar.parent.name for tar in graph.tars] == ["segment=00"]
