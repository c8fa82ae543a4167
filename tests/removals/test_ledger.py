from __future__ import annotations

from pathlib import Path

from laion_assets.layout import SegmentKey
from laion_assets.removals.entry import key_of
from laion_assets.removals.ledger import RemovalCounts, key_of_entry, note_removals, read_ledger

KEY = SegmentKey("CC-MAIN-2021-04", "00")
URL = key_of("url", "http://a.test/1.jpg")
SAMPLE = key_of("sample-id", "-7")


def test_the_ledger_says_what_changed_and_nothing_twice(tmp_path: Path) -> None:
    def note(removed: RemovalCounts, run: str, returns: bool = True) -> list[tuple[str, str, int]]:
        events = note_removals(tmp_path, "pair_parquet", KEY, removed, run_id=run, returns=returns)
        return [(event.event, event.list, event.samples) for event in events]

    more = RemovalCounts({("removals", URL): 3})
    both = RemovalCounts({("removals", URL): 2, ("blocklists", SAMPLE): 1})
    assert note(RemovalCounts(), "0") == []
    assert not list(tmp_path.iterdir())
    assert note(both, "1") == [("taken_out", "blocklists", 1), ("taken_out", "removals", 2)]
    assert note(both, "2") == []
    assert note(more, "3", returns=False) == [("taken_out", "removals", 3)]
    assert note(more, "4") == [("came_back", "blocklists", 1)]
    assert note(both, "5") == [("taken_out", "blocklists", 1), ("taken_out", "removals", 2)]
    events = list(read_ledger(tmp_path))
    assert [event.run_id for event in events] == ["1", "1", "3", "4", "5", "5"]
    assert {key_of_entry(event.entry) for event in events} == {URL, SAMPLE}
    ledger = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert "a.test" not in ledger
