"""The summary on standard output."""

from __future__ import annotations

import pyarrow as pa
import pytest

from laion_assets.demo.show import print_funnel
from laion_assets.funnel import STAGES


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
