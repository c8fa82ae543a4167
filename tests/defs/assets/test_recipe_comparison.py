"""The comparison as an asset: real Dagster runs over a small lake of drawings."""

from __future__ import annotations

import csv
import io
import re
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from PIL import Image

from laion_assets.clip.embed import EmbeddedWith
from laion_assets.clip.model import ClipModel
from laion_assets.comparison.pool import enough_segments
from laion_assets.comparison.result import ALL, MATCHING, ZERO_SHOT, Comparison
from laion_assets.defs.assets import recipe_comparison
from laion_assets.defs.build import build_defs
from laion_assets.filtering.recipe import Recipe, RecipeError
from laion_assets.filtering.score import ScoredWith
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey, partition_of
from laion_assets.settings import Settings, load_settings, sample_config
from laion_assets.stats.plotting import percent
from tests.comparison.conftest import QUICK, Drawings

FIRST, SECOND = (SegmentKey("CC-MAIN-2000-05", number) for number in ("00", "01"))
ASSETS = ("scored_pairs", "embeddings", "near_duplicates")


@dataclass
class Graph:
    settings: Settings
    instance: dg.DagsterInstance
    model: ClipModel

    @property
    def lake(self) -> LocalLake:
        return LocalLake(self.settings.lake)

    def publish(
        self, key: SegmentKey, drawings: Drawings, root: Path, assets: tuple[str, ...] = ASSETS
    ) -> None:
        segment = drawings.write(root)
        folders = (segment.scored, segment.embeddings, segment.near_duplicates)
        identity = self.model.identity.model_dump()
        rows = {"rows": len(drawings.rows), "words": "w v1"}
        prompts = {"prompts": "p v1", "prompts_digest": "0"}
        metadata = {
            "scored_pairs": ScoredWith(**identity, **rows, **prompts).model_dump(),
            "embeddings": EmbeddedWith(**identity, dimensions=self.model.dim).model_dump(),
            "near_duplicates": {},
        }
        for asset, folder in zip(ASSETS, folders, strict=True):
            if asset not in assets:
                continue
            with self.lake.publish(asset, key, inputs={}, code_version="1") as staging:
                for path in folder.iterdir():
                    path.rename(staging.path / path.name)
                staging.metadata = metadata[asset]

    def run(self, job: str, *assets: str) -> dg.ExecuteInProcessResult:
        return (
            build_defs(self.settings)
            .resolve_job_def(job)
            .execute_in_process(
                instance=self.instance,
                raise_on_error=False,
                asset_selection=[dg.AssetKey(asset) for asset in assets] or None,
            )
        )

    def metadata(self) -> dict[str, Any]:
        event = self.instance.get_latest_materialization_event(dg.AssetKey("recipe_comparison"))
        assert event
        assert event.asset_materialization
        return dict(event.asset_materialization.metadata)


def failure(run: dg.ExecuteInProcessResult) -> str:
    """The error of the one step that failed."""
    (failed,) = run.get_step_failure_events()
    return str(failed.step_failure_data.error)


@pytest.fixture
def graph(
    tmp_path: Path, drawings: Drawings, clip: ClipModel, instance: dg.DagsterInstance
) -> Graph:
    settings = load_settings(sample_config())
    settings = settings.model_copy(
        update={
            "lake": settings.lake.model_copy(update={"root": str(tmp_path / "lake")}),
            "comparison": QUICK.model_copy(update={"steps": 3, "classes": ["star", "circle"]}),
            "subsets": {"loose": Recipe(name="loose", threshold=0.2)},
            "retries": settings.retries.model_copy(
                update={"local": settings.retries.local.model_copy(update={"times": 0})}
            ),
        }
    )
    graph = Graph(settings, instance, clip)
    graph.publish(FIRST, drawings, tmp_path / "first")
    return graph


def test_a_comparison_is_published_and_shown_in_ui_and_report(graph: Graph) -> None:
    assert graph.run("aggregates", "catalog", "dataset_report").success
    page = graph.lake.published("dataset_report") / "report.html"
    assert "What each recipe teaches" not in page.read_text()

    assert graph.run("comparison").success
    folder = graph.lake.published("recipe_comparison")
    found = Comparison.read(folder)
    assert [arm.name for arm in found.arms] == [
        "laion400m v1",
        "loose v1",
        "random",
        "shuffled",
    ]
    assert found.matching == 0.31
    files = [item["name"] for item in graph.lake.manifest("recipe_comparison").files]
    assert sorted(files) == ["comparison.csv", "comparison.json", "comparison.png"]
    assert all(map(partition_of("recipe_comparison").names, files))
    assert Image.open(folder / "comparison.png").width == 920
    with (folder / "comparison.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 4 * (2 * 5 + 1)

    metadata = graph.metadata()
    assert metadata["conclusion"].value == found.conclusion
    rows = [record.data for record in metadata["table"].value.records]
    assert [row["trained on"] for row in rows[:4]] == [arm.name for arm in found.arms]
    assert rows[0]["recall@10"] == found.arms[0].on(ALL).value.mean
    zero_shot = [arm.on(MATCHING, ZERO_SHOT).value.mean for arm in found.arms]
    assert [row["zero-shot"] for row in rows] == [""] * 4 + [f"{mean:.3f}" for mean in zero_shot]
    (encoded,) = re.findall(r"base64,([\w+/=]+)\)", metadata["plot"].value)
    assert Image.open(io.BytesIO(b64decode(encoded))).width > 100

    assert graph.run("aggregates", "catalog", "dataset_report").success
    page = graph.lake.published("dataset_report") / "report.html"
    text = page.read_text()
    assert "What each recipe teaches" in text
    assert found.conclusion in text
    assert text.count("<td>loose v1</td>") == 2 + 1
    assert f"by 2 classes: star, circle. Chance: {percent(0.5)}." in text
    assert (page.parent / "figures" / "recipe_comparison.csv").exists()


def test_nothing_damaged_is_compared(graph: Graph) -> None:
    path = graph.lake.published("embeddings", FIRST) / "_img_emb" / "img_emb_00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert f"{path.name} has another SHA-256" in failure(graph.run("comparison"))
    assert not graph.lake.has("recipe_comparison")


def test_damage_of_what_is_not_read_does_not_matter(graph: Graph) -> None:
    path = graph.lake.published("embeddings", FIRST) / "_text_emb" / "text_emb_00000.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert graph.run("comparison").success


def test_each_recipe_is_an_arm_once(clip: ClipModel) -> None:
    recipe, other = Recipe(name="a", threshold=0.3), Recipe(name="b", threshold=0.3)
    rules = recipe_comparison._rules([recipe, other, recipe], clip.identity)
    assert [one.recipe for one in rules] == [recipe, other]
    with pytest.raises(RecipeError, match="two recipes are called a v1 and differ"):
        recipe_comparison._rules([recipe, Recipe(name="a", threshold=0.2)], clip.identity)


def test_a_segment_that_lacks_something_is_left_out_and_named(
    graph: Graph, drawings: Drawings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph.publish(SECOND, drawings, tmp_path / "second", ASSETS[:2])
    assert graph.run("comparison").success
    assert f"left out, as not all of {', '.join(ASSETS)}: {SECOND}" in caplog.text
    assert graph.lake.manifest("recipe_comparison").metadata["segments"] == 1


def test_only_segments_that_are_enough_are_read(
    graph: Graph, drawings: Drawings, tmp_path: Path
) -> None:
    graph.publish(SECOND, drawings, tmp_path / "second")
    pairs = len(drawings.rows)
    graph.settings = graph.settings.model_copy(
        update={"comparison": graph.settings.comparison.model_copy(update={"pool": pairs})}
    )
    (read,) = enough_segments({str(key): pairs for key in (FIRST, SECOND)}, pairs)
    (unread,) = {FIRST, SECOND} - {SegmentKey.parse(read)}
    path = graph.lake.published("scored_pairs", unread) / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert graph.run("comparison").success
    metadata = graph.lake.manifest("recipe_comparison").metadata
    assert [metadata[name] for name in ("pairs", "segments", "segments_available")] == [pairs, 1, 2]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_segment_that_is_replaced_meanwhile_is_noticed(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    read, pools = recipe_comparison.read_pool, []

    def replace() -> None:
        with graph.lake.publish("near_duplicates", FIRST, inputs={}, code_version="2") as staging:
            (staging.path / "part-00000.parquet").write_bytes(b"another")

    def replaced(*args: Any) -> Any:
        if when == "before":
            replace()
        pools.append(read(*args))  # raises then, as the file is no parquet
        replace()
        return pools[0]

    monkeypatch.setattr(recipe_comparison, "read_pool", replaced)
    assert "a segment was replaced meanwhile" in failure(graph.run("comparison"))
    assert bool(pools) == (when == "after")
    assert not graph.lake.has("recipe_comparison")
