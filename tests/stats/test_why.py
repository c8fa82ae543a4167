"""The story of a pair, for each way that it can end, over a small lake's files."""

from __future__ import annotations

import json
import os

import pyarrow.parquet as pq
import pytest

from laion_assets import schemas
from laion_assets.cli import main
from laion_assets.filtering.recipe import Recipe
from laion_assets.lake import LocalLake
from laion_assets.lookup.write import FILES, write_lookups
from laion_assets.schemas import sample_id_of
from laion_assets.stats.why import Answer, NotAskableError, why
from tests.stats.conftest import Record, SegmentFiles


def verdicts(answer: Answer) -> dict[str, str]:
    (story,) = answer.stories
    return {step.stage: step.verdict for step in story.steps if step.stage != "found"}


def note(segment: SegmentFiles, asset: str, **metadata: object) -> None:
    """Add to the metadata of a manifest, which stays as old as it was."""
    path = segment.folder(asset) / "_manifest.json"
    about, manifest = path.stat(), json.loads(path.read_text())
    manifest["metadata"] |= metadata
    path.write_text(json.dumps(manifest))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.fixture(params=["look-ups", "no look-ups"])
def lake(segment: SegmentFiles, request: pytest.FixtureRequest) -> LocalLake:
    for asset in FILES if request.param == "look-ups" else ():
        write_lookups(asset, segment.folder(asset))
    note(segment, "filtered_subset", options=Recipe().model_dump(mode="json"))
    note(segment, "pair_parquet", options={"min_text_chars": 5})
    return LocalLake.at(segment.lake)


def test_a_kept_pair_is_followed_to_where_it_is(segment: SegmentFiles, lake: LocalLake) -> None:
    answer = why(lake, segment.pairs[3]["url"])
    assert verdicts(answer) == {
        "pairs": "kept",
        "unique_pairs": "kept",
        "images": "kept",
        "embeddings": "kept",
        "scores": "scored",
        "filtered_subset": "kept",
    }
    (story,) = answer.stories
    steps = {step.stage: step for step in story.steps}
    assert steps["found"].verdict == "on http://page.test/"
    assert steps["found"].detail == "in a.warc.wat.gz"
    assert "language en (0.90)" in steps["pairs"].detail
    assert steps["pairs"].by.startswith("min_text_chars 5; code 1-abcd, made 2026-01-02T03:04:05")
    assert "000000003 in image_shards/crawl=" in steps["images"].detail
    assert "segment=00/_shards/00000.tar; fetched by 1 runs" in steps["images"].detail
    assert steps["scores"].detail.startswith("similarity 0.3150, UNLIKELY")
    assert steps["filtered_subset"].detail.startswith("now row 3 of filtered_subset/crawl=")
    assert steps["filtered_subset"].by.startswith(
        "recipe laion400m v1, threshold 0.3 for tiny/tiny"
    )


@pytest.mark.parametrize(
    ("row", "stage", "verdict", "detail"),
    [
        (30, "filtered_subset", "below_threshold", "below the model's threshold"),
        (45, "images", "http_4xx", "(no)"),
        (52, "images", "too_small", "fewer encoded bytes"),
        (57, "unique_pairs", "not kept", "no list or other segment"),
    ],
)
def test_a_rejected_pair_ends_where_it_was_rejected(
    segment: SegmentFiles, lake: LocalLake, row: int, stage: str, verdict: str, detail: str
) -> None:
    (story,) = why(lake, segment.pairs[row]["url"]).stories
    last = story.steps[-1]
    assert (last.stage, last.verdict) == (stage, verdict)
    assert detail in last.detail


def test_a_duplicate_names_the_segment_that_holds_it(
    segment: SegmentFiles, lake: LocalLake
) -> None:
    other = SegmentFiles(lake.root, segment.crawl, "01")
    pairs: list[Record] = [segment.pairs[57]]
    other.table("unique_pairs", "part-00000.parquet", pairs, schemas.PAIRS)
    other.manifest("unique_pairs", [])
    first, second = why(lake, segment.pairs[57]["url"]).stories
    steps = {step.stage: step for step in first.steps}
    assert steps["unique_pairs"].verdict == "duplicate"
    assert steps["unique_pairs"].detail.endswith(": CC-MAIN-2000-05|01")
    steps = {step.stage: step for step in second.steps}
    assert steps["pairs"].verdict == "not made"
    assert steps["unique_pairs"].verdict == "kept"


def test_the_lists_in_force_are_part_of_the_story(segment: SegmentFiles, lake: LocalLake) -> None:
    (lake.root / "removals").mkdir()
    (lake.root / "removals" / "mine.txt").write_text("host:c.test\nhttp://gone.test/a.jpg\n")
    answer = why(lake, segment.pairs[56]["url"])
    assert "/56.jpg" in answer.stories[0].url
    assert verdicts(answer)["unique_pairs"] == "removed"
    assert "is on the list `removals` now" in answer.remarks[0]
    gone = why(lake, "http://GONE.test/a.jpg")
    assert gone
    assert not gone.stories


def test_each_recipe_has_its_own_step(segment: SegmentFiles, lake: LocalLake) -> None:
    recipe = Recipe(name="wide", where="width > 1000")
    segment.table("subset_wide", "part-00000.parquet", [], schemas.SUBSET)
    segment.manifest(
        "subset_wide",
        [],
        recipe=recipe.title,
        threshold=0.2,
        model="tiny/tiny",
        model_version="0123",
        options=recipe.model_dump(mode="json"),
    )
    (story,) = why(lake, segment.pairs[3]["url"]).stories
    last = story.steps[-1]
    assert (last.stage, last.verdict) == ("subset_wide", "missing")
    (story,) = why(lake, segment.pairs[0]["url"]).stories
    last = story.steps[-1]
    assert (last.verdict, last.detail) == (
        "predicate",
        "outside the recipe's own conditions: width > 1000",
    )


@pytest.mark.parametrize(
    "rule", [{"min_scores": {"mark": 0.5}}, {"where": "score_mark > 0.5"}], ids=["bound", "where"]
)
def test_a_recipe_that_does_not_fit_the_scores_any_more_is_said(
    segment: SegmentFiles, lake: LocalLake, rule: dict[str, object]
) -> None:
    note(segment, "filtered_subset", options=Recipe(name="own", **rule).model_dump(mode="json"))
    (story,) = why(lake, segment.pairs[30]["url"]).stories
    last = story.steps[-1]
    assert (last.stage, last.verdict) == ("filtered_subset", "not kept")
    assert "cannot be applied to the scores as they are now" in last.detail
    assert "mark" in last.detail


def test_it_may_be_asked_by_sample_id_or_hash(segment: SegmentFiles, lake: LocalLake) -> None:
    for row in range(20):  # half of the ids are negative
        pair = segment.pairs[row]
        (story,) = why(lake, str(sample_id_of(pair["uid"]))).stories
        assert story.url == pair["url"]
        (story,) = why(lake, pair["uid"].hex()).stories
        assert story.url == pair["url"]
    part = segment.folder("image_shards") / "part-00000.parquet"
    table = pq.ParquetFile(part).read()
    for name, length in (("sha256", 64), ("md5", 32)):
        hashes = [f"{row:0{length}x}" for row in range(len(table))]
        at = table.schema.get_field_index(name)
        pq.write_table(table.set_column(at, name, [hashes]), part)
        if (segment.folder("image_shards") / "_lookup").exists():
            write_lookups("image_shards", segment.folder("image_shards"))
        (story,) = why(lake, f"{7:0{length}x}").stories
        assert story.url == segment.pairs[7]["url"]


def test_it_says_what_had_to_be_searched_row_by_row(segment: SegmentFiles, lake: LocalLake) -> None:
    with_look_ups = (segment.folder("pair_parquet") / "_lookup").exists()
    answer = why(lake, segment.pairs[3]["url"])
    scanned = [] if with_look_ups else ["pair_parquet of CC-MAIN-2000-05|00"]
    assert answer.scanned == scanned
    assert ("row by row" in list(answer.lines())[-1]) == bool(scanned)
    # What has left the pairs may still be in what was made of them.
    segment.table("pair_parquet", "part-00000.parquet", segment.pairs[4:30], schemas.PAIRS)
    if with_look_ups:
        write_lookups("pair_parquet", segment.folder("pair_parquet"))
    (segment.folder("pair_parquet") / "_manifest.json").touch()
    answer = why(lake, segment.pairs[3]["url"])
    assert answer.scanned == ["unique_pairs of CC-MAIN-2000-05|00", *scanned]
    assert verdicts(answer)["pairs"] == "missing"
    assert verdicts(answer)["filtered_subset"] == "kept"


def test_an_example_in_a_manifest_is_found(segment: SegmentFiles, lake: LocalLake) -> None:
    path = segment.folder("pair_parquet") / "_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"][1]["examples"] = {"url_too_long": ["http://long.test/aaa"]}
    path.write_text(json.dumps(manifest))
    assert why(lake, "http://long.test/aaa").remarks == [
        "CC-MAIN-2000-05|00, stage pairs: url_too_long (the URL is longer than the maximum)"
    ]


def test_questions_that_cannot_be_asked_or_have_no_answer(
    lake: LocalLake, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("an apple", "host:a.test", "123456789012345678901234567890", ""):
        with pytest.raises(NotAskableError):
            why(lake, text)
    assert not why(lake, "http://nobody.test/")
    assert main(["why", "http://nobody.test/", "--lake", str(lake)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"laion-assets: nothing is known of http://nobody.test/ in {lake}\n"
    with pytest.raises(SystemExit) as ended:
        main(["why", "an apple", "--lake", str(lake)])
    assert ended.value.code == 2


def test_the_command_prints_the_story(
    segment: SegmentFiles, lake: LocalLake, capsys: pytest.CaptureFixture[str]
) -> None:
    sample_id = sample_id_of(segment.pairs[3]["uid"])
    assert main(["why", str(sample_id), "--lake", str(lake)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == segment.pairs[3]["url"]
    assert lines[1].endswith(f"SAMPLE_ID {sample_id}, in CC-MAIN-2000-05|00")
    assert sum(" kept" in line for line in lines) == 5
