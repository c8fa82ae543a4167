from __future__ import annotations

from pathlib import Path

import pytest

from laion_assets.removals.compiled import load
from laion_assets.removals.entry import ListError
from laion_assets.removals.requests import REQUESTS, add


def test_a_requested_entry_stands_in_the_list_once(tmp_path: Path) -> None:
    lists = tmp_path / "removals"
    requested = ["url:HTTP://A.test/x#top", "host:b.test", "host:B.test"]
    assert add(lists, requested, "request\n17") == ["url:http://a.test/x", "host:b.test"]
    assert add(lists, ["host:b.test", "sample-id:7"]) == ["sample-id:7"]
    assert add(lists, ["host:b.test"], "again") == []
    lines = (lists / REQUESTS).read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        *("url:http://a.test/x", "host:b.test", "sample-id:7")
    ]
    assert lines[0].startswith("# ")
    assert lines[0].endswith(" request 17")
    with pytest.raises(ListError):
        add(lists, ["host:c.test", "nonsense"])
    assert not load(lists).matches_url("http://c.test/")
