"""The check of files in Dagster: what it reads, what it says, and when it is evaluated."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from laion_assets.defs.build import build_defs
from laion_assets.defs.verification import CHECK, FILES_WHOLE, JOB
from laion_assets.lake import LocalLake
from laion_assets.layout import CATALOG, PAIR_PARQUET, SegmentKey
from laion_assets.settings import Settings, load_settings, sample_config

KEYS = [SegmentKey("CC-MAIN-2000-10", f"{number:02}") for number in range(4)]


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    made = LocalLake.at(tmp_path / "lake")
    for asset, key in [*((PAIR_PARQUET, key) for key in KEYS), (CATALOG, None)]:
        publish(made, asset, key)
    return made


def publish(lake: LocalLake, asset: str, key: SegmentKey | None) -> None:
    with lake.publish(asset, key, inputs={}, code_version="1") as staging:
        (staging.path / "file").write_bytes(b"content")


@pytest.fixture
def settings(lake: LocalLake) -> Settings:
    sample = load_settings(sample_config())
    return sample.model_copy(
        update={"lake": sample.lake.model_copy(update={"root": str(lake.root)})}
    )


def test_a_failure_stays_until_the_damage_is_mended(lake: LocalLake, settings: Settings) -> None:
    definitions = build_defs(settings)
    with dg.instance_for_test() as instance:

        def evaluated(number: int, shares: int) -> dict[str, dg.AssetCheckEvaluation]:
            done = definitions.resolve_job_def(JOB).execute_in_process(
                instance=instance,
                run_config={"ops": {CHECK: {"config": {"number": number, "shares": shares}}}},
            )
            found = done.get_asset_check_evaluations()
            assert {evaluation.check_name for evaluation in found} == {FILES_WHOLE}
            return {evaluation.asset_key.to_user_string(): evaluation for evaluation in found}

        first = evaluated(0, 1)
        assert set(first) == {
            key.to_user_string()
            for key in definitions.resolve_asset_graph().materializable_asset_keys
        }
        assert all(evaluation.passed for evaluation in first.values())
        assert first[PAIR_PARQUET].metadata["partitions"].value == 4

        (lake.published(PAIR_PARQUET, KEYS[2]) / "file").write_bytes(b"comtent")
        found = [evaluated(number, 3) for number in range(3)]
        assert [of_share[CATALOG].passed for of_share in found] == [True] * 3
        passed = [of_share[PAIR_PARQUET].passed for of_share in found]
        assert passed == sorted(passed, reverse=True)  # from the share that has it on
        assert [of_share[PAIR_PARQUET].metadata["damaged"].value for of_share in found] == [
            [] if whole else [[KEYS[2].crawl, KEYS[2].segment]] for whole in passed
        ]
        last = found[-1][PAIR_PARQUET]
        assert not last.passed
        assert "file has another SHA-256" in (last.description or "")
        assert "materialize" in (last.description or "")

        publish(lake, PAIR_PARQUET, KEYS[2])
        assert evaluated(0, 1000)[PAIR_PARQUET].passed


def test_no_other_job_reads_what_it_has_just_written(settings: Settings) -> None:
    definitions = build_defs(settings)
    for name in ("segment", "aggregates", "observe_lists", "generation", "comparison"):
        assert CHECK not in {node.name for node in definitions.resolve_job_def(name).nodes}


def test_the_schedule_comes_to_each_share_in_turn(settings: Settings) -> None:
    policy = settings.verification.model_copy(update={"shares": 3})
    definitions = build_defs(settings.model_copy(update={"verification": policy}))
    schedule = definitions.resolve_schedule_def("verify_share")
    numbers = []
    for day in range(1, 5):
        at = datetime(2026, 11, day, 4, tzinfo=UTC)
        with dg.build_schedule_context(scheduled_execution_time=at) as context:
            [request] = schedule.evaluate_tick(context).run_requests or []
        config = request.run_config["ops"][CHECK]["config"]
        assert config["shares"] == 3
        numbers.append(config["number"])
    assert sorted(numbers[:3]) == [0, 1, 2]
    assert numbers[3] == numbers[0]


def test_without_a_time_there_is_no_schedule(settings: Settings) -> None:
    policy = settings.verification.model_copy(update={"at": None})
    definitions = build_defs(settings.model_copy(update={"verification": policy}))
    names = {schedule.name for schedule in definitions.schedules or ()}
    assert "verify_share" not in names
