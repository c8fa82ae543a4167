"""SQL results as a table, CSV and JSON; tests/stats/test_catalog.py has every kind of value."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from laion_assets.cli.output import print_csv, print_json, print_table

TABLE = pa.table({"stage": ["pairs", None], "share": [0.25, 12.0], "hosts": [["a.test"], []]})


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(TABLE)
    assert capsys.readouterr().out.splitlines() == [
        "stage  share    hosts",
        "─────  ───────  ──────────",
        "pairs  0.2500   ['a.test']",
        "       12.0000  []",
    ]


def test_csv_holds_nested_values_as_json(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    print_csv(TABLE)
    assert capfdbinary.readouterr().out.decode().splitlines() == [
        '"stage","share","hosts"',
        '"pairs",0.25,"[""a.test""]"',
        ',12,"[]"',
    ]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_json_is_an_array_with_an_object_a_line(n: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(TABLE.slice(0, n))
    out = capsys.readouterr().out
    assert json.loads(out) == TABLE.slice(0, n).to_pylist()
    assert len(out.splitlines()) == max(n, 1)
