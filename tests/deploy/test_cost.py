from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cost import (
    OPERATIONS,
    TABLES,
    Amounts,
    Assumptions,
    Rates,
    days_of_a_segment,
    download_hours,
    estimate,
    main,
    measured,
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


def test_one_process_fetches_however_many_cores_a_machine_has() -> None:
    many = replace(ONE, machine_cores=1e9, fetch_ms=3600, gpu_images_per_s=1e12)
    # 500,000 URLs and a fifth again, a hundredth of them a segment, 3.6 s each at half the time.
    assert days_of_a_segment(many, RATES) == pytest.approx(600_000 / 100 * 2 / 1000 / 24, rel=1e-3)
    few = replace(ONE, machine_cores=2, fetch_ms=0, gpu_images_per_s=1e12)
    assert days_of_a_segment(few, RATES) > days_of_a_segment(replace(few, machine_cores=4), RATES)


def test_prices_are_in_proportion() -> None:
    dear = replace(ONE, core_hour=0.08, gpu_hour=1.2, gb_month=0.044)
    for line in estimate(ONE, RATES):
        assert line.euros(dear) == pytest.approx(2 * line.euros(ONE))


def test_the_rates_are_those_of_the_benchmarks(tmp_path: Path) -> None:
    assert measured().wat_mb_per_core_s > 1, "a row or column of docs/benchmarks.md has a new name"
    with pytest.raises(ValueError, match="ours, all rules"):
        measured(_written(tmp_path / "empty.md", "nothing"))


def test_the_document_has_the_tables_that_the_command_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = OPERATIONS.read_text("utf-8")
    page = _written(tmp_path / "operations.md", written)
    main([], page)
    capsys.readouterr()
    assert page.read_text("utf-8") == written, "run: python -m deploy.cost"


def test_an_option_changes_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = _written(tmp_path / "operations.md", OPERATIONS.read_text("utf-8"))
    before = page.read_text("utf-8")
    main(["--months", "12"], page)
    printed, after = capsys.readouterr().out, page.read_text("utf-8")
    assert after != before
    for name in TABLES:
        made = after.partition(f"<!-- begin {name} -->\n")[2].partition("\n<!-- end")[0]
        assert made
        assert made in printed


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
