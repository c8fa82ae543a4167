from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cost import OPERATIONS, Assumptions, Rates, estimate, main, measured

ONE = Assumptions(
    wat_files=1000, wat_mb=100, pairs_per_mb=10, unique=0.5, alive=0.5, image_kb=100, fetched_kb=200
)
RATES = Rates(
    wat_mb_per_core_s=10,
    claim_s_per_million=3.6,
    download_cpu_s_per_1000=10,
    scored_rows_per_s=1000,
    subset_rows_per_s=1000,
)


def test_each_stage_is_items_over_rate() -> None:
    lines = {line.stage: line for line in estimate(ONE, RATES)}
    pairs, download = lines["WAT to pairs"], lines["download"]
    assert (pairs.items, pairs.comes_in) == (1e6, 1e11)
    assert pairs.unit_hours == pytest.approx(100_000 / 10 / 3600)
    assert lines["unique pairs"].unit_hours == pytest.approx(3.6 / 3600)
    assert (download.items, download.comes_in, download.stored) == (250_000, 5e10, 2.5e10)
    assert download.unit_hours == pytest.approx(500 * 10 / 3600), (
        "hosts that do not answer cost, too"
    )
    assert download.euros(ONE) == pytest.approx(500 * 10 / 3600 * 0.04 + 25 * 0.022)
    embed = lines["embed"]
    assert embed.stored == 250_000 * 2 * 512 * 2
    assert embed.euros(ONE) == pytest.approx(250_000 / 1500 / 3600 * 0.6 + 0.512 * 0.022)


def test_prices_are_in_proportion() -> None:
    dear = replace(ONE, core_hour=0.08, gpu_hour=1.2, gb_month=0.044)
    for line in estimate(ONE, RATES):
        assert line.euros(dear) == pytest.approx(2 * line.euros(ONE))


def test_the_rates_are_those_of_the_benchmarks(tmp_path: Path) -> None:
    assert measured().wat_mb_per_core_s > 1, "a row or column of docs/benchmarks.md has a new name"
    with pytest.raises(ValueError, match="ours, all rules"):
        measured(_written(tmp_path / "empty.md", "nothing"))


def test_the_table_goes_into_the_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = _written(tmp_path / "operations.md", OPERATIONS.read_text("utf-8"))
    main(["--months", "12"], page)
    table = capsys.readouterr().out.strip()
    assert table in page.read_text("utf-8")
    assert table.splitlines()[-1].startswith("| **all** |")


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
