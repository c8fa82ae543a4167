"""The sample crawl must leave the whole graph exactly as its manifest says."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from pathlib import Path

import dagster as dg
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from laion_assets import schemas
from laion_assets.cli import main
from laion_assets.defs.build import AGGREGATES
from laion_assets.layout import SEGMENT_ASSETS, partition_of
from laion_assets.sample_crawl.build import Manifest
from laion_assets.stats.why import why
from laion_assets.tables import read_parquet, stored
from tests.world.conftest import World

RECORD_BYTES, RECORD_BYTES_AN_ASSET = 150_000, 33_000
"""Most that Dagster keeps of a run, or of each asset of a large one; half of it are events that
only Dagster writes."""


@pytest.fixture(scope="session")
def manifest(world: World) -> Manifest:
    return Manifest.read(world.crawl)


def sql(world: World, statement: str, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Rows of ``laion-assets sql --csv``, without the header."""
    capsys.readouterr()
    assert main(["sql", "--csv", "--config", str(world.config), statement]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    return [[cell.strip('"') for cell in line.split(",")] for line in lines]


def test_every_segment_of_both_crawls_was_requested(world: World) -> None:
    assert [str(key) for key in world.keys] == [
        "CC-MAIN-2000-05|00",
        "CC-MAIN-2000-05|01",
        "CC-MAIN-2000-10|00",
        "CC-MAIN-2000-10|01",
    ]


def test_the_funnel_is_the_manifests(
    world: World, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sql(world, "select stage, reason, n from funnel order by 1, 2", capsys)
    expected = sorted([stage, reason, str(n)] for stage, reason, n in manifest.funnel)
    assert found == expected


def test_every_kept_case_is_in_the_subset_and_no_other(world: World, manifest: Manifest) -> None:
    subset = Counter(
        (row["URL"], row["TEXT"])
        for key in world.keys
        for part in sorted(world.lake.published("filtered_subset", key).glob("part-*.parquet"))
        for row in read_parquet(part, ["URL", "TEXT"]).to_pylist()
    )
    kept = Counter((case.url, case.text) for case in manifest.cases if case.kept)
    assert subset == kept


def test_every_refused_image_has_its_planned_reason(world: World, manifest: Manifest) -> None:
    found = Counter()
    for key in world.keys:
        for shard in sorted(world.lake.published("image_shards", key).glob("*.parquet")):
            for row in pq.read_table(shard).to_pylist():
                if row["status"] != "success":
                    found[row["url"], row["caption"], row["reason"]] += 1
    expected = Counter(
        (case.url, case.text, case.reason) for case in manifest.cases if case.stage == "images"
    )
    assert found == expected


def test_every_check_passed_on_every_partition(world: World) -> None:
    evaluations = [
        event.dagster_event.asset_check_evaluation_data
        for run in world.instance.get_runs()
        for event in world.instance.all_logs(run.run_id)
        if event.dagster_event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
        and event.dagster_event
    ]
    assert {check.check_name for check in evaluations} >= {
        "schema_exact",
        "keys_unique",
        "funnel_adds_up",
        "shards_whole",
        "vectors_sound",
        "rows_aligned",
        "above_threshold",
        "size_equal",
        "recall",
    }
    assert [check for check in evaluations if not check.passed] == []


def test_no_partition_has_a_file_that_the_layout_does_not_name(world: World) -> None:
    for asset in (*SEGMENT_ASSETS, *AGGREGATES):
        for key in world.keys if asset in SEGMENT_ASSETS else [None]:
            files = [item["name"] for item in world.lake.manifest(asset, key).files]
            assert files
            assert [name for name in files if not partition_of(asset).names(name)] == []


def test_materializations_have_dagsters_own_keys(world: World) -> None:
    for asset in SEGMENT_ASSETS:
        record = world.instance.fetch_materializations(dg.AssetKey(asset), limit=1).records[0]
        metadata = record.asset_materialization.metadata
        declared = world.defs.resolve_asset_graph().get(dg.AssetKey(asset)).metadata
        columns = declared["dagster/column_schema"].columns
        table = partition_of(asset).rows
        heads = ["score_*"] if table.scores else []
        assert [column.name for column in columns] == [*table.schema.names, *heads]
        assert all(column.description for column in columns)
        assert metadata["dagster/uri"].value.startswith("file:///")
        assert metadata["dagster/partition_row_count"].value > 0
    index = world.instance.get_latest_materialization_event(dg.AssetKey("search_index"))
    assert index
    assert index.asset_materialization.metadata["dagster/row_count"].value > 100


def test_the_record_of_a_run_stays_small(world: World) -> None:
    for run_id in world.instance.get_run_ids():
        sizes, assets = Counter[str](), 0
        for entry in world.instance.all_logs(run_id):
            kind = entry.dagster_event_type
            sizes[kind.value if kind else "log"] += len(dg.serialize_value(entry))
            assets += kind == dg.DagsterEventType.ASSET_MATERIALIZATION
        assert 0 < sizes.total() <= max(RECORD_BYTES, RECORD_BYTES_AN_ASSET * assets), sizes


def test_materializations_have_the_metadata_that_people_need(world: World) -> None:
    for asset in SEGMENT_ASSETS:
        records = world.instance.fetch_materializations(dg.AssetKey(asset), limit=10).records
        assert len({record.partition_key for record in records}) == 4
        metadata = records[0].asset_materialization.metadata
        assert {"seconds", "bytes", "code_version", "folder"} <= set(metadata)
    images = world.instance.fetch_materializations(dg.AssetKey("image_shards"), limit=1).records[0]
    metadata = images.asset_materialization.metadata
    assert metadata["images/in"].value > metadata["images/kept"].value > 100
    assert "data:image" in metadata["contact_sheet"].value
    for asset in AGGREGATES:
        assert world.instance.get_latest_materialization_event(dg.AssetKey(asset))


def test_the_subset_has_the_release_schema_and_its_rules_hold(world: World) -> None:
    assert schemas.SUBSET.names[:8] == [
        "SAMPLE_ID",
        "URL",
        "TEXT",
        "HEIGHT",
        "WIDTH",
        "LICENSE",
        "NSFW",
        "similarity",
    ]
    for key in world.keys:
        folder = world.lake.published("filtered_subset", key)
        for part in sorted(folder.glob("part-*.parquet")):
            columns = schemas.with_scores(schemas.SUBSET, ["score_watermark"])
            assert pq.read_schema(part).equals(stored(columns, part))
            table = read_parquet(part)
            number = part.stem.removeprefix("part-")
            image = np.load(folder / f"_img_emb/img_emb_{number}.npy").astype(np.float64)
            text = np.load(folder / f"_text_emb/text_emb_{number}.npy").astype(np.float64)
            cosine = (image * text).sum(axis=1)
            assert np.abs(cosine - table["similarity"].to_numpy()).max() < 2e-3
            for row in table.to_pylist():
                uid = schemas.uid_of(row["URL"], row["TEXT"])
                assert row["SAMPLE_ID"] == schemas.sample_id_of(uid)


def test_kept_samples_have_the_planned_values(world: World, manifest: Manifest) -> None:
    """Original size (the release has WIDTH and HEIGHT swapped), licence and safety tag."""
    planned = {
        (case.url, case.text): (case.width, case.height, case.license, case.nsfw)
        for case in manifest.cases
        if case.kept
    }
    found = {
        (row["URL"], row["TEXT"]): (row["WIDTH"], row["HEIGHT"], row["LICENSE"], row["NSFW"])
        for key in world.keys
        for part in sorted(world.lake.published("filtered_subset", key).glob("part-*.parquet"))
        for row in read_parquet(part).to_pylist()
    }
    assert found == planned
    assert sum(width != height for width, height, _, _ in found.values()) > 50
    assert {nsfw for _, _, _, nsfw in found.values()} == {"UNLIKELY", "UNSURE", "NSFW"}


def test_further_recipes_have_their_own_subsets(
    world: World, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [case for case in manifest.cases if case.kept]
    portraits = [case for case in kept if case.height > case.width]
    assert 0 < len(portraits) < len(kept)
    rows = sql(
        world,
        "select (select count(*) from subset_portraits), (select count(*) from subset_laion5b_en)",
        capsys,
    )
    # No pair of the sample crawl is between the two thresholds.
    assert rows == [[str(len(portraits)), str(len(kept))]]


def test_why_explains_every_kind_of_end(world: World, manifest: Manifest) -> None:
    step_of = {"unique_pairs": "unique_pairs", "images": "images", "subset": "filtered_subset"}
    ends = {(case.stage, case.reason): case for case in manifest.cases if case.stage in step_of}
    assert len(ends) > 20
    for (stage, reason), case in ends.items():
        stories = [
            story
            for story in why(world.lake, case.url).stories
            if story.text == case.text
            and any(step.stage == "found" and case.wat_file in step.detail for step in story.steps)
        ]
        verdicts = [
            step.verdict
            for story in stories
            for step in story.steps
            if step.stage == step_of[stage]
        ]
        assert verdicts == [reason], (stage, reason, case.url)
        if case.kept:
            assert {step.stage for step in stories[0].steps} >= {"knn_index", "search_index"}


NAMED = {
    "a red apple": "apple",
    "a slice of pizza": "pizza",
    "a birthday cake": "cake",
    "a guitar": "guitar",
    "an elephant": "elephant",
    "a house": "house",
    "a cat": "cat",
    "a dog": "dog",
    "an umbrella": "umbrella",
    "a bicycle": "bicycle",
    "a snowman": "snowman",
    "a rocket": "rocket",
    "a turtle": "turtle",
    "a cactus": "cactus",
    "an airplane": "airplane",
    "a christmas tree": "christmas tree",
    "a strawberry": "strawberry",
    "an octopus": "octopus",
    "a key": "key",
    "a heart": "heart",
}


def test_things_are_found_by_name(world: World, manifest: Manifest) -> None:
    """A small model gets some wrong; the list was not chosen by what it gets right."""
    from laion_assets.clip.model import load_clip
    from laion_assets.knn.query import search_text

    model = load_clip(world.settings.clip)
    texts = "\n".join(case.text for case in manifest.cases if case.kept).lower()
    present = {query: word for query, word in NAMED.items() if re.search(rf"\b{word}\b", texts)}
    assert len(present) >= 16
    right = [
        word
        for query, word in present.items()
        if re.search(rf"\b{word}\b", search_text(world.index, query, model, 1)[0].text.lower())
    ]
    assert len(right) >= 0.7 * len(present), sorted(set(present.values()) - set(right))


def test_the_search_command(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    command = ["search", "--config", str(world.config), str(world.index), "a guitar", "-k", "3"]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 6
    assert "guitar" in out[0].lower()
    assert out[1].strip().startswith("http://")


def test_search_by_image_finds_the_image(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = world.lake.published("image_shards", world.keys[0]) / "_shards" / "00000.tar"
    row = next(
        row
        for part in sorted(world.lake.published("filtered_subset", world.keys[0]).glob("part-*"))
        for row in read_parquet(part).to_pylist()
        if row["key"].startswith("00000")
    )
    picture = tmp_path / "query.jpg"
    with tarfile.open(shard) as tar:
        member = tar.extractfile(f"{row['key']}.jpg")
        assert member
        picture.write_bytes(member.read())
    capsys.readouterr()
    command = ["search", "--config", str(world.config), str(world.index), "--image", str(picture)]
    assert main(command) == 0
    assert row["URL"] in capsys.readouterr().out.splitlines()[1]


def test_any_duckdb_opens_the_catalog(world: World, manifest: Manifest) -> None:
    with duckdb.connect(str(world.lake.folder("catalog") / "catalog.duckdb"), read_only=True) as db:
        views = {name for (name,) in db.execute("select view_name from duckdb_views()").fetchall()}
        assert {"pairs", "unique_pairs", "images", "subset", "stats", "rejects", "runs"} <= views
        row = db.execute("select count(*), count(distinct SAMPLE_ID) from subset").fetchone()
        kept = sum(case.kept for case in manifest.cases)
        assert row == (kept, kept)


def test_the_report_is_one_self_contained_page(world: World) -> None:
    page = (world.lake.published("dataset_report") / "report.html").read_text()
    assert "CC-MAIN-2000-10" in page
    assert "data:image/png" in page
    assert not re.search(r"""(?:src=|url\(|@import|<link)[^>)]*https?:""", page)
    assert (world.lake.published("dataset_report") / "dataset_card.md").exists()


def test_the_subset_is_exported_and_verified(world: World, tmp_path: Path) -> None:
    out = tmp_path / "release"
    command = ["export", "--config", str(world.config), "-o", str(out)]
    assert main([*command, "--files", "3"]) == 0
    assert main([*command, "--verify"]) == 0
    kept = sum(
        world.lake.manifest("filtered_subset", key).stage("subset").kept for key in world.keys
    )
    assert sum(pq.read_metadata(part).num_rows for part in out.glob("metadata/*")) == kept


def test_rebuilding_a_segment_changes_nothing(world: World) -> None:
    """Same inputs, same bytes: no sample is lost to its own former claims, nothing goes stale."""
    key = world.keys[1]
    before = {asset: world.lake.manifest(asset, key) for asset in SEGMENT_ASSETS}
    files = before["filtered_subset"].files
    assert world.run("segment", str(key)).success
    after = {asset: world.lake.manifest(asset, key) for asset in SEGMENT_ASSETS}
    assert after["filtered_subset"].files == files
    for asset in SEGMENT_ASSETS:
        assert after[asset].data_version == before[asset].data_version, asset


def test_a_second_tick_requests_nothing(world: World) -> None:
    assert not world.tick().run_requests
