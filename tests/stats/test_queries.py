"""Each query of docs/queries.md runs as `laion-assets sql` runs it."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from laion_assets.cli import main
from laion_assets.stats.catalog import build_catalog, query

PAGE = (Path(__file__).parents[2] / "docs" / "queries.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def catalog(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "catalog.duckdb"
    build_catalog(lake, path)
    return path


def test_the_page_has_some_twenty_queries() -> None:
    assert len(QUERIES) >= 20
    assert len(set(QUERIES)) == len(QUERIES)


@pytest.mark.parametrize("sql", QUERIES)
def test_a_query_of_the_page_answers(catalog: Path, sql: str) -> None:
    answer = query(catalog, sql)
    assert answer.num_rows
    assert len(set(answer.schema.names)) == len(answer.schema.names)
    filled = {name for name in answer.schema.names if answer[name].null_count < answer.num_rows}
    assert filled >= set(answer.schema.names) - {"laion400m_share"}, "a column holds something"


def test_every_macro_is_on_the_page(catalog: Path) -> None:
    sql = (
        "select function_name from duckdb_functions() "
        "where function_type = 'table_macro' and not internal"
    )
    macros = query(catalog, sql)["function_name"].to_pylist()
    assert len(macros) == 11
    assert [name for name in macros if f"`{name}(" not in PAGE] == []


def test_the_command_line_prints_a_table_csv_or_json(
    catalog: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def output(*words: str) -> str:
        assert main(["sql", "--catalog", str(catalog), *words]) == 0
        return capfdbinary.readouterr().out.decode()

    sql = (
        "select what, samples, share, null as nothing, 'nan'::float as nan from resolution_table()"
    )
    header, _, first, *_ = output(sql).splitlines()
    assert header.split() == ["what", "samples", "share", "nothing", "nan"]
    assert first.split() == ["Unique", "samples", "72", "1.0000", "nan"]
    rows = list(csv.DictReader(output("--csv", sql).splitlines()))
    assert rows[0]["samples"] == "72"
    found = json.loads(output("--json", sql))
    assert found == json.loads(output("--format", "json", sql))
    assert found[0] == {
        "what": "Unique samples",
        "samples": 72,
        "share": 1.0,
        "nothing": None,
        "nan": None,
    }
    assert len(found) == len(rows) == 7
    assert json.loads(output("--json", "select uid from pairs limit 1"))[0]["uid"].isalnum()
    assert json.loads(output("--json", "from pairs where false")) == []
