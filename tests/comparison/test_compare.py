"""The instrument, on pairs of which it is known which are right."""

from __future__ import annotations

import csv
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laion_assets.clip.model import tokenizer_of
from laion_assets.comparison.compare import compare, interval_of, mean_of, resampled, wider_for
from laion_assets.comparison.options import ComparisonOptions
from laion_assets.comparison.pool import (
    Rules,
    Segment,
    TooFewPairsError,
    enough_segments,
    read_pool,
)
from laion_assets.comparison.result import (
    ALL,
    MATCHING,
    RANDOM,
    SHUFFLED,
    SUMMARY,
    ZERO_SHOT,
    Comparison,
)
from laion_assets.filtering.one_of_each import OtherRowsError
from laion_assets.filtering.recipe import Recipe
from laion_assets.sample_crawl.drawings import THINGS
from tests.comparison.conftest import QUICK, SWAPPED, Drawings
from tests.comparison.make_drawings import TINY

THRESHOLD = 0.31
FILTERED = Rules(Recipe(name="filtered"), THRESHOLD)
UNFILTERED = Rules(Recipe(name="unfiltered"), -1.0)
MODEL = "tiny"


@pytest.fixture(scope="module")
def segment(drawings: Drawings, tmp_path_factory: pytest.TempPathFactory) -> Segment:
    return drawings.write(tmp_path_factory.mktemp("drawings"))


def run(segment: Segment, *rules: Rules, options: ComparisonOptions = QUICK) -> Comparison:
    pool = read_pool([segment], rules, options)
    return compare(pool, rules, THRESHOLD, options, tokenizer_of(TINY), MODEL)


def test_a_filter_that_refuses_wrong_captions_wins_and_shuffled_captions_find_nothing(
    segment: Segment, drawings: Drawings
) -> None:
    assert 1 - drawings.right.mean() == pytest.approx(SWAPPED, abs=0.02)
    found = run(segment, FILTERED, UNFILTERED)
    arms = {arm.name: arm for arm in found.arms}
    assert [*arms] == ["filtered v1", "unfiltered v1", RANDOM, SHUFFLED]
    for pool in (ALL, MATCHING):
        above = arms["filtered v1"].on(pool).above_random
        assert above
        assert above.low > 0
    assert arms["filtered v1"].verdict == "better"
    assert arms["unfiltered v1"].verdict == "unclear", "it is what random is"
    assert arms[SHUFFLED].verdict == "worse"
    assert found.control_holds
    for one in found.held_out:
        value = arms[SHUFFLED].on(one.name).value
        assert value.low <= one.chance[10] == 10 / one.pairs
        assert value.mean < 2 * one.chance[10]
    assert found.best == "filtered v1"
    assert found.conclusion.startswith("filtered v1 trains a better model than every other arm")


NAMED = QUICK.model_copy(update={"held_out_share": 0.4, "classes": [*THINGS]})


def test_what_wrong_captions_cost_shows_zero_shot_and_shuffled_captions_teach_no_names(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(segment, FILTERED, options=NAMED)
    assert found.zero_shot
    assert found.zero_shot.left_out == ["fish"], "which the CLIP that matches seldom recognises"
    assert "as fewer than 10 matching held-out pairs name them: fish (" in caplog.text
    assert [*found.zero_shot.classes] == [name for name in THINGS if name != "fish"]
    assert min(found.zero_shot.classes.values()) >= 10
    (matching,) = (one.pairs for one in found.held_out if one.name == MATCHING)
    assert matching - 10 < found.zero_shot.pairs <= matching, "nearly all captions name a thing"
    assert found.zero_shot.chance == pytest.approx(1 / 11, abs=1e-5)

    filtered, random, shuffled = (arm.on(MATCHING, ZERO_SHOT) for arm in found.arms)
    assert random.value.mean > 0.7
    assert filtered.above_random
    assert filtered.above_random.low > 0
    assert shuffled.value.low <= found.zero_shot.chance <= shuffled.value.high
    assert shuffled.value.high < 0.3
    assert found.control_holds
    assert found.options["classes"] == NAMED.classes


def test_zero_shot_is_beside_what_was_measured_before(segment: Segment, tmp_path: Path) -> None:
    without = run(segment, FILTERED, options=QUICKEST)
    assert without.zero_shot is None
    assert "zero-shot" not in without.table()[0]
    found = run(
        segment, FILTERED, options=QUICKEST.model_copy(update={"classes": ["star", "Circle"]})
    )
    assert found.conclusion == without.conclusion
    for arm, other in zip(found.arms, without.arms, strict=True):
        assert arm.measured[:-1] == other.measured
        assert (arm.measured[-1].held_out, arm.measured[-1].measure) == (MATCHING, ZERO_SHOT)
    found.write(tmp_path)
    assert Comparison.read(tmp_path) == found
    with (tmp_path / "comparison.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["measure"] == ZERO_SHOT]
    assert [float(row["mean"]) for row in rows] == [
        arm.on(MATCHING, ZERO_SHOT).value.mean for arm in found.arms
    ]
    shown = [row["zero-shot"] for row in found.table()]
    assert shown[:3] == ["", "", ""], "all held-out pairs"
    assert shown[3:] == [f"{float(row['mean']):.3f}" for row in rows]


def test_too_few_classes_are_refused_before_anything_is_trained(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    rare = QUICK.model_copy(update={"classes": ["star", "Oryx", "drawn star"]})
    with pytest.raises(
        TooFewPairsError, match=r"fewer than 10 .* name Oryx \(0\), drawn star \(0\)"
    ):
        run(segment, FILTERED, options=rare)
    assert "steps" not in caplog.text


QUICKEST = QUICK.model_copy(update={"steps": 2})


def test_the_same_pairs_give_the_same_result_which_names_none_of_them(
    segment: Segment, drawings: Drawings, tmp_path: Path
) -> None:
    found = run(segment, FILTERED, options=QUICKEST)
    assert run(segment, FILTERED, options=QUICKEST) == found
    found.write(tmp_path)
    assert Comparison.read(tmp_path) == found
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    for row in drawings.rows:
        for name in ("SAMPLE_ID", "url", "text", "sha256"):
            assert str(row[name]) not in written
    with (tmp_path / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 2 * 5
    (one,) = (
        row
        for row in rows
        if (row["trained_on"], row["held_out"], row["measure"]) == ("filtered v1", ALL, SUMMARY)
    )
    assert float(one["mean"]) == found.arms[0].on(ALL).value.mean
    assert found.options["steps"] == 2
    assert found.samples == 300


def test_no_recipe_has_a_say_in_what_is_held_out(segment: Segment) -> None:
    strict, loose = (read_pool([segment], [one], QUICK) for one in (FILTERED, UNFILTERED))
    assert strict.held_out.tolist() == loose.held_out.tolist()
    assert 0.15 < strict.held_out.mean() < 0.25
    assert not strict.held_out[strict.rows_to_train(FILTERED)].any()
    searched = strict.rows_to_search(None, 5_000)
    assert strict.held_out[searched].all()
    texts = strict.texts.take(searched).to_pylist()
    assert len(set(texts)) == len(texts), "each has one right answer"
    assert set(strict.rows_to_search(THRESHOLD, 5_000)) < set(np.flatnonzero(strict.held_out))
    assert len(strict.rows_to_search(None, 60)) == 60


def test_all_copies_of_a_picture_are_on_one_side(drawings: Drawings, tmp_path: Path) -> None:
    def in_tens(rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            row["cluster"] = number // 10

    one_of_each = Rules(Recipe(name="one", duplicates="images"), -1.0)
    folder = drawings.write(tmp_path, in_tens)
    for options in (QUICK, QUICK.model_copy(update={"pool": 500})):
        pool = read_pool([folder], [UNFILTERED, one_of_each], options)
        trained = pool.rows_to_train(UNFILTERED)
        pictures, copies = np.unique(pool.pictures[trained], return_counts=True)
        assert (copies == 10).all(), "a cluster survives whole"
        assert not set(pictures) & set(pool.pictures[pool.held_out])
        assert len(pool.rows_to_train(one_of_each)) == len(pictures) == len(trained) / 10
        searched = pool.pictures[pool.rows_to_search(None, 5_000)]
        assert sorted(searched) == sorted(set(pool.pictures[pool.held_out]))


def test_a_recipe_of_one_of_each_picture_trains_on_the_largest(
    segment: Segment, drawings: Drawings, tmp_path: Path
) -> None:
    trained = read_pool([segment], [UNFILTERED], QUICK).rows_to_train(UNFILTERED)
    first, second, third = trained[:3]

    def copies(rows: list[dict[str, Any]]) -> None:
        for row in (first, second, third):
            rows[row]["cluster"] = first
        rows[second]["width"] = 900

    one_of_each = Rules(Recipe(name="one", duplicates="images"), -1.0)
    pool = read_pool([drawings.write(tmp_path, copies)], [one_of_each], QUICK)
    assert pool.rows_to_train(one_of_each).tolist() == [second, *trained[3:]]


def test_of_a_large_lake_a_share_is_read(segment: Segment, drawings: Drawings) -> None:
    options = QUICK.model_copy(update={"pool": 500})
    pool = read_pool([segment], [FILTERED], options)
    assert 400 < len(pool) < 600
    whole = read_pool([segment], [FILTERED], QUICK)
    place = {sample: row for row, sample in enumerate(whole.sample_ids.tolist())}
    rows = [place[sample] for sample in pool.sample_ids.tolist()]
    assert pool.held_out.tolist() == whole.held_out[rows].tolist()
    assert (pool.images == drawings.images[rows]).all()
    assert pool.taken["filtered v1"].tolist() == whole.taken["filtered v1"][rows].tolist()


def test_of_a_large_lake_some_segments_are_read() -> None:
    rows = {f"CC-MAIN-2000-05/{number:02d}": 100 + number for number in range(20)}
    assert enough_segments(rows, 10**6) == [*rows]
    some = enough_segments(rows, 700)
    assert some == sorted(some)
    assert some == enough_segments(dict(reversed(rows.items())), 700)[::-1]
    assert 700 <= sum(rows[key] for key in some) < 700 + max(rows.values())
    assert some != [*rows][: len(some)]
    assert set(enough_segments(rows, 300)) < set(some)
    assert len(enough_segments(rows, 1)) == 1


def test_pairs_without_a_caption_are_no_pairs(drawings: Drawings, tmp_path: Path) -> None:
    def without(rows: list[dict[str, Any]]) -> None:
        rows[0]["text"] = None

    pool = read_pool([drawings.write(tmp_path, without)], [FILTERED], QUICK)
    assert len(pool) == len(drawings.rows) - 1


def test_too_few_pairs_are_refused_before_anything_is_trained(
    segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    strict = Rules(Recipe(name="strict"), 0.9)
    with pytest.raises(TooFewPairsError, match=r"strict v1 leaves 0 pairs .* least = 150"):
        run(segment, FILTERED, strict)
    few = QUICK.model_copy(update={"held_out_share": 0.02})
    with pytest.raises(TooFewPairsError, match=r"only \d+ held-out pairs .*held_out_share"):
        run(segment, FILTERED, options=few)
    assert "steps" not in caplog.text


def test_assets_of_other_rows_are_refused(drawings: Drawings, tmp_path: Path) -> None:
    def another(rows: list[dict[str, Any]]) -> None:
        rows[5]["SAMPLE_ID"] += 1

    segment, other = drawings.write(tmp_path / "a"), drawings.write(tmp_path / "b", another)
    for mixed in (
        replace(segment, near_duplicates=other.near_duplicates),
        replace(segment, scored=other.scored),
    ):
        with pytest.raises(OtherRowsError, match="scored_pairs and near_duplicates again"):
            read_pool([mixed], [FILTERED], QUICK)


def test_intervals_of_few_seeds_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    held, times, seeds = 0, 400, 5
    for _ in range(times):
        by_seed, by_pair = rng.normal(size=(seeds, 1, 1)), 0.5 * rng.normal(size=(1, 20, 1))
        found = (by_seed + by_pair).astype(np.float32)
        drawn = resampled({"arm": found}, np.zeros(20, int))["arm"]
        interval = interval_of(found.mean(), drawn, seeds)
        held += interval.low <= 0 <= interval.high
    assert 0.93 <= held / times < 0.99


def test_every_group_of_pairs_counts_alike() -> None:
    found = np.zeros((5, 40, 1), np.float32)
    found[:, :30] = 1
    groups = np.repeat([0, 1], [30, 10])
    assert mean_of(found, groups) == pytest.approx(0.5)
    assert np.allclose(resampled({"arm": found}, groups)["arm"], 0.5)


def test_the_factor_is_that_of_student_s_distribution() -> None:
    quantiles = {5: 2.7764, 6: 2.5706, 10: 2.2622, 30: 2.0452}
    for seeds, quantile in quantiles.items():
        factor = quantile / 1.95996 * (seeds / (seeds - 1)) ** 0.5
        assert wider_for(seeds) == pytest.approx(factor, rel=3e-3)


def test_progress_has_a_rate(segment: Segment, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(segment, FILTERED, options=QUICKEST)
    assert "recipe comparison: 30/30 steps in " in caplog.text


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="batch 256 is more than least 200"):
        ComparisonOptions(least=200)
    with pytest.raises(ValueError, match="least 1000 is more than samples 900"):
        ComparisonOptions(samples=900)
    with pytest.raises(ValueError, match="greater than or equal to 5"):
        ComparisonOptions(seeds=4)
    with pytest.raises(ValueError, match="star is the only class"):
        ComparisonOptions(classes=["star"])
    with pytest.raises(ValueError, match="listed twice: star, Star"):
        ComparisonOptions(classes=["star", "Star"])
    with pytest.raises(ValueError, match=r"white space around it: \[''\]"):
        ComparisonOptions(classes=["star", ""])
