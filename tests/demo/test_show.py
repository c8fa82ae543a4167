"""The summary on standard output."""

from __future__ import annotations

import pyarrow as pa
import pytest

from laion_assets.demo.show import print_funnel
from laion_assets.funnel import STAGES


def test_the_funnel_shows_each_stage_with_its_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("pairs", "in", 1200), ("pairs", "language", 200), ("pairs", "kept", 1000)]
    names = ("stage", "reason", "n")
    print_funnel(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows]))
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["stage", "n"]
    assert len(lines) == 2 * len(STAGES) + 1
    first = 2 * list(STAGES).index("pairs")
    assert [line.split() for line in lines[first : first + 3]] == [
        ["pairs", "in", "1,200"],
        ["−", "language", "200"],
        ["kept", "1,000"],
    ]
