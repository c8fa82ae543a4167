"""Subsets as assets: real Dagster runs over a small lake that has scores and embeddings."""

from __future__ import annotations

import io
import json
import re
import shutil
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from laion_assets.clip.embed import EmbeddedWith
from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.vectors import image_path
from laion_assets.dedup.ledger import claimed
from laion_assets.defs.build import build_defs
from laion_assets.defs.partitions import crawls, partition_key
from laion_assets.filtering.score import ScoredWith, score_segment, write_categories
from laion_assets.funnel import StageCounts
from laion_assets.heads.head import load_head
from laion_assets.lake import LocalLake
from laion_assets.layout import SegmentKey, subset_ledger
from laion_assets.lookup.find import MADE_OF
from laion_assets.safety.prompts import Categories, categories_of, load_prompts
from laion_assets.schemas import SUBSET
from laion_assets.settings import Settings, load_settings
from laion_assets.stats.catalog import query
from laion_assets.tables import part_path, stored
from tests.filtering.conftest import DIM, NAKED, MakeEmbeddings, sample, write_shard
from tests.heads.conftest import write_linear

KEY = SegmentKey("CC-MAIN-2021-01", "00")
MODEL = "ViT-B-32/openai"
CONFIG = """
[subsets.laion5b-en]
recipe = "laion5b-en"

[subsets.portraits]
threshold = 0.2
where = "height > width"
"""


@dataclass
class Place:
    """A lake and a Dagster instance; ``settings`` may change between runs."""

    root: Path
    instance: dg.DagsterInstance

    @property
    def lake(self) -> LocalLake:
        return LocalLake.at(self.root / "lake")

    def settings(self, config: str) -> Settings:
        path = self.root / "config.toml"
        path.write_text(f'[lake]\nroot = "{self.root}/lake"\n{config}')
        return load_settings(path)

    def defs(self, config: str = CONFIG) -> dg.Definitions:
        return build_defs(self.settings(config))

    def make(self, *assets: str, config: str = CONFIG, job: str = "segment") -> None:
        done = (
            self.defs(config)
            .resolve_job_def(job)
            .execute_in_process(
                instance=self.instance,
                partition_key=partition_key(KEY) if job == "segment" else None,
                asset_selection=[dg.AssetKey(asset) for asset in assets],
            )
        )
        assert done.success

    def metadata(self, asset: str) -> dict[str, Any]:
        event = self.instance.get_latest_materialization_event(dg.AssetKey(asset))
        assert event
        assert event.asset_materialization
        return dict(event.asset_materialization.metadata)

    def numbers(self, asset: str) -> list[int]:
        """Of the samples that a subset holds."""
        part = part_path(self.lake.published(asset, KEY), 0)
        table = pq.ParquetFile(part).read()
        assert table.schema.equals(stored(SUBSET, part))
        return [int(key) for key in table["key"].to_pylist()]


def embedded_with(model: str) -> dict[str, Any]:
    return EmbeddedWith(model=model, model_version="v", dimensions=4).model_dump()


def scored_with(rows: int, model: str) -> dict[str, Any]:
    return ScoredWith(
        rows=rows, prompts="p v1", prompts_digest="0", words="w v1", model=model, model_version="v"
    ).model_dump()


def embedded(rows: int) -> StageCounts:
    counts = StageCounts("embeddings")
    counts.keep(rows)
    return counts


@pytest.fixture
def place(
    tmp_path: Path, make_embeddings: MakeEmbeddings, categories: Categories
) -> Iterator[Place]:
    rows = [sample(n, 0.155 + n / 100, height=300 + 200 * (n % 2)) for n in range(30)]
    rows.append(sample(30, 0.45, NAKED, text="a kid"))
    lake = LocalLake.at(tmp_path / "lake")
    with lake.publish("image_shards", KEY, inputs={}, code_version="1") as staging:
        write_shard(staging.path, rows, [(90, 90, 160)] * len(rows))
    with lake.publish("embeddings", KEY, inputs={}, code_version="1") as staging:
        make_embeddings(rows).rename(staging.path / "made")
        for folder in (staging.path / "made").iterdir():
            folder.rename(staging.path / folder.name)
        (staging.path / "made").rmdir()
        staging.counts, staging.metadata = [embedded(len(rows))], embedded_with(MODEL)
    with lake.publish("scored_pairs", KEY, inputs={}, code_version="1") as staging:
        n = score_segment(lake.published("embeddings", KEY), staging.path, categories)
        staging.metadata = scored_with(n, MODEL)
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        instance.add_dynamic_partitions(crawls.name or "", [KEY.crawl])
        yield Place(tmp_path, instance)


def test_recipes_stand_side_by_side_and_a_changed_one_makes_its_own_subset_only(
    place: Place,
) -> None:
    before = {asset: place.lake.manifest(asset, KEY) for asset in ("embeddings", "scored_pairs")}
    place.make("filtered_subset", "subset_laion5b_en", "subset_portraits")
    assert place.numbers("filtered_subset") == list(range(15, 30))
    assert place.numbers("subset_laion5b_en") == list(range(13, 30))
    assert place.numbers("subset_portraits") == list(range(5, 30, 2))
    manifests = {
        asset: place.lake.manifest(asset, KEY)
        for asset in ("filtered_subset", "subset_laion5b_en", "subset_portraits")
    }
    told = {asset: manifest.metadata["recipe"] for asset, manifest in manifests.items()}
    assert list(told.values()) == ["laion400m v1", "laion5b-en v1", "portraits v1"]
    assert manifests["subset_laion5b_en"].metadata["threshold"] == 0.28
    assert manifests["subset_portraits"].metadata["options"]["where"] == "height > width"
    assert manifests["subset_portraits"].stage("subset").rejects["predicate"] == 12

    changed = CONFIG.replace("threshold = 0.2", "version = 2\nthreshold = 0.4")
    old, new = (
        {
            spec.key.to_user_string(): spec.code_version
            for spec in place.defs(config).resolve_all_asset_specs()
        }
        for config in (CONFIG, changed)
    )
    differ = {asset for asset in old if old[asset] != new[asset]}
    assert differ == {"subset_portraits", "recipe_comparison"}
    place.make("subset_portraits", config=changed)
    assert place.numbers("subset_portraits") == [25, 27, 29]
    for asset, manifest in {**before, **manifests}.items():
        same = place.lake.manifest(asset, KEY) == manifest
        assert same == (asset != "subset_portraits"), asset


def test_each_subset_has_its_checks_and_view_and_what_a_person_wants_to_see(place: Place) -> None:
    place.make("filtered_subset", "subset_laion5b_en")
    checks: dict[str, set[str]] = {}
    for run in place.instance.get_runs():
        for event in place.instance.all_logs(run.run_id):
            if event.dagster_event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
                assert event.dagster_event
                check = event.dagster_event.asset_check_evaluation_data
                checks.setdefault(check.asset_key.to_user_string(), set()).add(check.check_name)
    assert len(checks["filtered_subset"]) == 7
    assert checks["subset_laion5b_en"] == checks["filtered_subset"]

    metadata = place.metadata("subset_laion5b_en")
    for name in ("kept_just_above", "dropped_just_below", "similarity"):
        encoded, file = re.findall(r"base64,([\w+/=]+)\)\n\n`file://(.*)`", metadata[name].value)[0]
        assert len(encoded) <= 16_000
        assert Image.open(io.BytesIO(b64decode(encoded))).size[0] > 100
        assert Path(file).stat().st_size <= 150_000
        assert Image.open(file).size[0] > 500
    rows = [record.data for record in metadata["safety_tags"].value.records]
    tags = {row["tag"]: (row["pairs"], row["kept"]) for row in rows}
    assert tags == {"UNLIKELY": (30, 17), "UNSURE": (0, 0), "NSFW": (1, 0)}

    place.make("catalog", job="aggregates")
    counts = query(
        place.lake.published("catalog") / "catalog.duckdb",
        "select (select count(*) from subset), (select count(*) from subset_laion5b_en), "
        "(select count(*) from subset_portraits)",
    )
    assert [column[0].as_py() for column in counts.columns] == [15, 17, 0]


def scores_of_this_code(place: Place) -> pa.Table:
    """Publish the scores as an earlier run did: by the present code, of the present embeddings,
    with categories that would give other tags. Return them."""
    scored, of = place.lake.published("scored_pairs", KEY), place.lake.manifest("embeddings", KEY)
    prompts = load_prompts("laion400m")
    vectors = np.random.default_rng(1).normal(size=(77, DIM)).astype(np.float32)
    n = len(prompts.categories) + len(prompts.underage) + len(prompts.animals)
    categories = categories_of(prompts, np.resize(vectors, (n, DIM)))
    with place.lake.publish("scored_pairs", KEY, inputs={}, code_version="4-0") as staging:
        for path in scored.iterdir():
            if path.name.startswith(("part-", "_similarities")):
                shutil.copyfile(path, staging.path / path.name)
        write_categories(staging.path, categories)
        made_with = scored_with(31, MODEL) | {"prompts_digest": prompts.digest}
        staging.metadata = made_with | {MADE_OF: {"embeddings": of.data_version}}
    return scores(place)


def scores(place: Place) -> pa.Table:
    return pq.ParquetFile(part_path(place.lake.published("scored_pairs", KEY), 0)).read()


def test_damaged_scores_are_made_again_by_the_very_run(place: Place) -> None:
    before = scores_of_this_code(place)
    place.make("scored_pairs")
    assert scores(place).equals(before)
    part = part_path(place.lake.published("scored_pairs", KEY), 0)
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    place.make("scored_pairs")
    assert place.lake.damaged("scored_pairs", KEY) == {}
    assert place.lake.manifest("scored_pairs", KEY).metadata["damaged_files"] == [part.name]
    now = scores(place)
    assert now["similarity"].equals(before["similarity"])
    assert not now["nsfw"].equals(before["nsfw"]), "the categories are those that it found"


def test_scores_are_not_taken_over_for_other_vectors_of_the_same_samples(place: Place) -> None:
    before = scores_of_this_code(place)
    published = place.lake.published("embeddings", KEY)
    manifest = place.lake.manifest("embeddings", KEY)
    with place.lake.publish("embeddings", KEY, inputs={}, code_version="1") as staging:
        shutil.copytree(published, staging.path, dirs_exist_ok=True)
        path = image_path(staging.path, 0)
        vectors = np.load(path)
        # As if an image that was refetched were another picture by now.
        vectors[3] = -vectors[3]
        np.save(path, vectors)
        staging.counts, staging.metadata = list(manifest.counts), dict(manifest.metadata)
    place.make("scored_pairs")
    now = scores(place)
    assert now["SAMPLE_ID"].equals(before["SAMPLE_ID"])
    was, similarity = (table["similarity"].to_numpy() for table in (before, now))
    assert similarity[3] == pytest.approx(-was[3])
    assert np.delete(similarity, 3).tolist() == np.delete(was, 3).tolist()


def test_a_new_head_makes_the_scores_stale_and_what_is_made_of_them_alone(place: Place) -> None:
    weights, identity = np.eye(DIM)[0], ModelIdentity(model=MODEL, model_version="v")
    head = write_linear(place.root / "first.json", weights, identity)
    config = f'{CONFIG}[heads.first]\nfile = "{head}"\n'

    def versions(text: str) -> dict[str, str | None]:
        specs = place.defs(text).resolve_all_asset_specs()
        return {spec.key.to_user_string(): spec.code_version for spec in specs}

    before, after = versions(CONFIG), versions(config)
    assert [asset for asset in before if before[asset] != after[asset]] == ["scored_pairs"]

    of = place.lake.manifest("embeddings", KEY)
    tags = scores_of_this_code(place)["nsfw"]
    place.make("scored_pairs", "filtered_subset", config=config)
    part = pq.ParquetFile(part_path(place.lake.published("scored_pairs", KEY), 0)).read()
    assert part["nsfw"].equals(tags), "these categories would have given others"
    assert part["score_first"].null_count == 0
    assert place.lake.manifest("embeddings", KEY) == of
    heads = {"first": load_head(str(head)).digest}
    for asset in ("scored_pairs", "filtered_subset"):
        assert place.lake.manifest(asset, KEY).metadata["heads"] == heads
        names = pq.read_schema(part_path(place.lake.published(asset, KEY), 0)).names
        assert names[-1] == "score_first"

    other = write_linear(place.root / "other.json", weights)
    config = f'{CONFIG}[heads.first]\nfile = "{changed_model(other)}"\n'
    with pytest.raises(Exception, match=r"head first .* is for .*version w.* are of .*version v"):
        place.make("scored_pairs", config=config)


def changed_model(head: Path) -> Path:
    values = json.loads(head.read_text()) | {"model_version": "w"}
    head.write_text(json.dumps(values))
    return head


def test_a_model_that_the_recipe_does_not_know_is_refused(place: Place) -> None:
    with place.lake.publish("embeddings", KEY, inputs={}, code_version="2") as staging:
        staging.counts, staging.metadata = [embedded(0)], embedded_with("ViT-L-14/openai")
    with pytest.raises(Exception, match=r"laion5b-en.*has no threshold for 'ViT-L-14/openai'"):
        place.make("subset_laion5b_en")


def test_new_scores_ask_for_the_further_subsets(place: Place) -> None:
    """As the automation's sensor does: each segment's, once its scores were made anew."""
    defs = place.defs()
    first = dg.evaluate_automation_conditions(defs=defs, instance=place.instance)
    assert first.total_requested == 0
    place.instance.report_runless_asset_event(
        dg.AssetMaterialization("embeddings", partition=partition_key(KEY))
    )
    place.instance.report_runless_asset_event(
        dg.AssetMaterialization("scored_pairs", partition=partition_key(KEY))
    )
    after = dg.evaluate_automation_conditions(
        defs=defs, instance=place.instance, cursor=first.cursor
    )
    for asset in ("subset_laion5b_en", "subset_portraits"):
        assert after.get_requested_partitions(dg.AssetKey(asset)) == {str(partition_key(KEY))}
    assert after.get_num_requested(dg.AssetKey("filtered_subset")) == 0
    again = dg.evaluate_automation_conditions(
        defs=defs, instance=place.instance, cursor=after.cursor
    )
    assert again.total_requested == 0


def test_a_recipe_takes_one_of_each_cluster(place: Place) -> None:
    config = '[subset]\nname = "one"\nduplicates = "images"\nthreshold = 0.2\n'
    place.make("near_duplicates", config=config)
    (clusters,) = pq.ParquetFile(part_path(place.lake.published("near_duplicates", KEY), 0)).read(
        ["cluster"]
    )
    assert len(clusters.unique()) == 1  # all pictures are of one colour, in the same bytes
    place.make("filtered_subset", config=config)
    assert place.numbers("filtered_subset") == [5]  # the first of the largest
    assert place.lake.manifest("filtered_subset", KEY).stage("subset").rejects == {
        "below_threshold": 5,
        "unsafe_minor_text": 1,
        "duplicate_image": 24,
    }
    assert claimed(place.lake.root / subset_ledger("filtered_subset")) == {KEY: 1}
    # Taken back, the pictures are free for other segments once the recipe takes one of each again.
    place.make("filtered_subset", config='[subset]\nname = "all"\nthreshold = 0.2\n')
    assert len(place.numbers("filtered_subset")) == 25
    assert claimed(place.lake.root / subset_ledger("filtered_subset")) == {KEY: 0}
