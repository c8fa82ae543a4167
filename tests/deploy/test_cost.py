from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cost import OPERATIONS, TABLES, main, measured
from laion_assets.preflight.cost import RATES


def test_the_rates_are_those_of_the_benchmarks(tmp_path: Path) -> None:
    assert measured().wat_mb_per_core_s > 1, "a row or column of docs/benchmarks.md has a new name"
    with pytest.raises(ValueError, match="ours, all rules"):
        measured(_written(tmp_path / "empty.md", "nothing"))


def test_the_document_and_the_package_have_what_the_command_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = OPERATIONS.read_text("utf-8")
    page, rates = _written(tmp_path / "operations.md", written), tmp_path / "rates.json"
    main([], page, rates)
    capsys.readouterr()
    assert page.read_text("utf-8") == written, "run: python -m deploy.cost"
    assert rates.read_text("utf-8") == RATES.read_text("utf-8"), "run: python -m deploy.cost"


def test_an_option_changes_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = _written(tmp_path / "operations.md", OPERATIONS.read_text("utf-8"))
    before = page.read_text("utf-8")
    main(["--months", "12"], page, tmp_path / "rates.json")
    printed, after = capsys.readouterr().out, page.read_text("utf-8")
    assert after != before
    for name in TABLES:
        made = after.partition(f"<!-- begin {name} -->\n")[2].partition("\n<!-- end")[0]
        assert made
        assert made in printed


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
