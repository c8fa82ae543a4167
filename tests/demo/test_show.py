"""The summary on standard output."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from laion_assets.demo.show import next_steps, print_funnel
from laion_assets.demo.world import DRAWN, SAMPLE, Places
from laion_assets.funnel import STAGES
from laion_assets.settings import shipped_config


def test_the_funnel_has_a_line_a_stage_with_its_main_refusals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reasons = {"in": 1200, "language": 120, "text_short": 60, "kept": 1000}
    reasons |= {"duplicate": 15, "url_long": 2, "url_suffix": 3}
    rows = [{"stage": "pairs", "reason": reason, "n": n} for reason, n in reasons.items()]
    print_funnel(pa.Table.from_pylist(rows))
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["stage", "in", "kept", "refused"]
    assert [line.split()[0] for line in lines] == list(STAGES)
    line = lines[list(STAGES).index("pairs")]
    assert line.split()[1:3] == ["1,200", "1,000"]
    assert line.endswith("   language 120, text_short 60, duplicate 15, 5 for 2 other reasons")


def test_what_to_do_next_can_be_done_where_the_demo_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("LAION_ASSETS_CONFIG", raising=False)
    checkout, installed = Path(__file__).parents[2], Path(sys.executable).with_name("laion-assets")
    assert os.access(installed, os.X_OK)
    ui, page, sql, search = next_steps(Places(checkout, SAMPLE), tmp_path / "index")
    assert (ui.split()[:2], page.split()[:2]) == (["make", "ui"], ["make", "search"])
    command = sql.split()[0]
    assert (checkout / command).samefile(installed)
    assert search == f'{command} search {tmp_path}/index "a slice of pizza"'

    # Installed, and run in a folder of one's own: no Makefile is there.
    steps = next_steps(Places(tmp_path, SAMPLE), tmp_path / "index")
    assert [step.split()[0] for step in steps] == [str(installed)] * 4
    assert [step.split()[1] for step in steps] == ["ui", "search-page", "sql", "search"]

    monkeypatch.setenv("PATH", str(installed.parent))
    monkeypatch.setenv("LAION_ASSETS_CONFIG", str(shipped_config(DRAWN)))
    ui, page, sql, search = next_steps(Places(tmp_path, DRAWN), tmp_path / "index")
    assert ui.startswith("laion-assets ui --world drawn ")
    assert page.startswith("laion-assets search-page --world drawn ")
    assert sql.startswith(f"LAION_ASSETS_CONFIG={shipped_config(DRAWN)} laion-assets sql ")
    assert search == f'laion-assets search {tmp_path}/index "a yellow star"'

    # Settings of one's own have a lake of their own.
    monkeypatch.setenv("LAION_ASSETS_CONFIG", "/my own.toml")
    ui, page, sql, search = next_steps(Places(checkout, SAMPLE), tmp_path / "index")
    assert ui.startswith("LAION_ASSETS_CONFIG='/my own.toml' make ui ")
    assert page.startswith("LAION_ASSETS_CONFIG='/my own.toml' make search ")
    assert sql.startswith("LAION_ASSETS_CONFIG='/my own.toml' laion-assets sql ")
