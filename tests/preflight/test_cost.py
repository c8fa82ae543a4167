from __future__ import annotations

from dataclasses import replace

import pytest

from laion_assets.preflight.cost import (
    Amounts,
    Assumptions,
    Rates,
    days_of_a_segment,
    download_hours,
    estimate,
    hours_on_one_machine,
)

ONE = Assumptions(
    wat_files=1000,
    wat_mb=100,
    pairs_per_mb=10,
    unique=0.5,
    alive=0.5,
    image_kb=100,
    fetched_kb=200,
    asked_again=0.2,
    busy=0.5,
    dead_ms=2,
)
RATES = Rates(
    wat_mb_per_core_s=10,
    claim_s_per_million=3.6,
    download_cpu_s_per_1000=10,
    scored_rows_per_s=1000,
    subset_rows_per_s=1000,
    embed_cpu_s_per_1000=100,
)


def test_each_stage_is_items_over_rate_and_the_time_it_waits() -> None:
    lines = {line.stage: line for line in estimate(ONE, RATES)}
    pairs, download = lines["WAT to pairs"], lines["download"]
    assert (pairs.items, pairs.comes_in) == (1e6, 1e11)
    assert pairs.unit_hours == pytest.approx(100_000 / 10 / 3600 / 0.5)
    assert lines["unique pairs"].unit_hours == pytest.approx(3.6 / 3600 / 0.5)
    assert (download.items, download.comes_in, download.stored) == (250_000, 5e10, 2.5e10)
    embed = lines["embed"]
    assert embed.stored == 250_000 * 2 * 512 * 2
    assert embed.euros(ONE) == pytest.approx(250_000 / 1500 / 3600 / 0.5 * 0.6 + 0.512 * 0.022)


def test_a_dead_url_is_asked_for_and_is_no_image() -> None:
    # 250,000 images at 10 ms; 250,000 dead URLs and 100,000 asked for again, at 2 ms.
    hours = (250_000 * 10e-3 + 350_000 * 2e-3) / 3600
    assert download_hours(Amounts.of(ONE), ONE, RATES) == pytest.approx(hours)
    download = next(line for line in estimate(ONE, RATES) if line.stage == "download")
    assert download.euros(ONE) == pytest.approx(hours / 0.5 * 0.04 + 25 * 0.022)


def test_as_many_processes_fetch_as_are_set_however_many_cores_a_machine_has() -> None:
    many = replace(ONE, machine_cores=1e9, fetch_ms=3600, gpu_images_per_s=1e12)
    # 500,000 URLs and a fifth again, a hundredth of them a segment, 3.6 s each at half the time.
    assert days_of_a_segment(many, RATES) == pytest.approx(600_000 / 100 * 2 / 1000 / 24, rel=1e-3)
    two = replace(many, fetch_processes=2)
    assert days_of_a_segment(two, RATES) == pytest.approx(
        days_of_a_segment(many, RATES) / 2, rel=1e-3
    )
    few = replace(ONE, machine_cores=2, fetch_ms=0, gpu_images_per_s=1e12)
    assert days_of_a_segment(few, RATES) > days_of_a_segment(replace(few, machine_cores=4), RATES)


@pytest.mark.parametrize("cores", [8, 16])
def test_more_processes_that_fetch_never_raise_the_estimate(cores: int) -> None:
    usual = Assumptions(machine_cores=cores, concurrency=2048)
    hours = [
        hours_on_one_machine(replace(usual, fetch_processes=n), Rates.shipped())
        for n in range(1, 17)
    ]
    assert hours == sorted(hours, reverse=True)


def test_the_process_that_hands_urls_out_bounds_the_others() -> None:
    many = replace(ONE, machine_cores=1e9, fetch_ms=3600, gpu_images_per_s=1e12)
    bound = replace(many, fetch_processes=16, hand_out_ms=1800)
    assert days_of_a_segment(bound, RATES) == pytest.approx(
        days_of_a_segment(many, RATES) / 2, rel=1e-3
    )


def test_prices_are_in_proportion() -> None:
    dear = replace(ONE, core_hour=0.08, gpu_hour=1.2, gb_month=0.044)
    for line in estimate(ONE, RATES):
        assert line.euros(dear) == pytest.approx(2 * line.euros(ONE))


def test_few_requests_at_once_are_what_a_small_machine_waits_for() -> None:
    slow = replace(ONE, concurrency=1, url_s=3600, fetch_ms=0, gpu_images_per_s=1e12)
    assert hours_on_one_machine(slow, RATES) == pytest.approx(600_000, rel=1e-3)
    assert hours_on_one_machine(replace(slow, concurrency=10), RATES) < 70_000


def test_without_a_gpu_the_cores_embed() -> None:
    none = replace(ONE, gpus=0, machine_cores=4)
    embed = next(line for line in estimate(none, RATES) if line.stage == "embed")
    assert embed.unit_hours == pytest.approx(250_000 * 0.1 / 3600 / 0.5)
    assert embed.euros(none) == pytest.approx(embed.unit_hours * 0.04 + 0.512 * 0.022)
    spared = replace(none, gpus=1, gpu_images_per_s=1e12)
    saved = hours_on_one_machine(none, RATES) - hours_on_one_machine(spared, RATES)
    assert saved == pytest.approx(embed.unit_hours / 4)
