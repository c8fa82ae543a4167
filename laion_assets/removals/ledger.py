"""What the lists took out: a partition's counts by entry, and the removal ledger.

The ledger answers "is it out, since when, by which list, from where" without keeping what was
taken out: it names an entry by its key (a digest, or a SAMPLE_ID), never by URL, text or image.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from laion_assets.files import locked, write_text
from laion_assets.layout import EVERY_HIVE, SegmentKey, place_of
from laion_assets.removals.active import LEDGER, Lists
from laion_assets.removals.entry import Key

TAKEN_OUT: Final = "taken_out"
CAME_BACK: Final = "came_back"

EVENTS: Final = f"{LEDGER}/{TAKEN_OUT}"
"""The lake's folder of events, which has a file for each partition."""

RemovalCounts = Counter[tuple[str, Key]]
"""(list, entry) -> how many samples it took out."""


def all_listed(removed: RemovalCounts, lists: Lists) -> bool:
    """Whether every entry that took something out is still in force."""
    by_kind: dict[tuple[str, str], list[bytes]] = {}
    for name, key in removed:
        by_kind.setdefault((name, key.kind), []).append(key.value)
    return all(lists[name].which_keys(kind, keys).all() for (name, kind), keys in by_kind.items())


def to_json(removed: RemovalCounts) -> str:
    """The counts as JSON: sorted ``[list, kind, key in hexadecimal, samples]``."""
    return json.dumps(
        [[name, key.kind, key.value.hex(), n] for (name, key), n in sorted(removed.items())]
    )


def from_json(text: str | bytes) -> RemovalCounts:
    """The counts that :func:`to_json` wrote."""
    return RemovalCounts(
        {(name, Key(kind, bytes.fromhex(key))): n for name, kind, key, n in json.loads(text)}
    )


@dataclass(frozen=True)
class Event:
    """One line of the ledger.

    ``at``: UTC, ISO 8601. ``event``: :data:`TAKEN_OUT` or :data:`CAME_BACK`. ``entry``: the
    entry's key as text, a digest or a SAMPLE_ID.
    """

    at: str
    event: str
    asset: str
    crawl: str
    segment: str
    list: str
    entry: str
    samples: int
    run_id: str


def events_file(asset: str, key: SegmentKey) -> str:
    """Path, within the lake, of the file of one partition's events."""
    return f"{EVENTS}/{place_of(asset, key)}.jsonl"


def _path(lake: Path, asset: str, key: SegmentKey) -> Path:
    return lake / events_file(asset, key)


def read_ledger(lake: Path) -> Iterator[Event]:
    """All events, partition by partition, oldest first within each."""
    for path in sorted((lake / EVENTS).glob(f"*/{EVERY_HIVE}.jsonl")):
        yield from _read(path)


def read_events(lake: Path, asset: str, key: SegmentKey) -> list[Event]:
    """The events of one partition, oldest first."""
    return _read(_path(lake, asset, key))


def key_of_entry(entry: str) -> Key:
    """The key that an event's ``entry`` names."""
    kind, _, value = entry.partition(":")
    if kind == "sample-id":
        return Key(kind, int(value).to_bytes(8, "big", signed=True))
    return Key(kind, bytes.fromhex(value))


def _read(path: Path) -> list[Event]:
    if not path.exists():
        return []
    return [Event(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def note_removals(
    lake: Path, asset: str, key: SegmentKey, removed: RemovalCounts, *, run_id: str, returns: bool
) -> list[Event]:
    """Note what a published partition lacks because of the lists; return the new events.

    Only what differs from the ledger's last word is new: noting again, after a kill or for a
    rebuilt partition, changes nothing. With ``returns``, ``removed`` is all that the partition
    lacks: what the ledger says is out and ``removed`` does not hold has come back.
    """
    path = _path(lake, asset, key)
    if not removed and not path.exists():
        return []
    now = {(name, str(entry)): n for (name, entry), n in removed.items()}
    with locked(path.with_name(f".{path.name}.lock"), lambda: None):
        events = _read(path)
        last = {(event.list, event.entry): event for event in events}
        new = [
            *_events(
                TAKEN_OUT,
                {
                    at: n
                    for at, n in now.items()
                    if at not in last or (last[at].event, last[at].samples) != (TAKEN_OUT, n)
                },
                asset,
                key,
                run_id,
            ),
            *_events(
                CAME_BACK,
                {
                    at: event.samples
                    for at, event in last.items()
                    if returns and at not in now and event.event == TAKEN_OUT
                },
                asset,
                key,
                run_id,
            ),
        ]
        if new:
            lines = [json.dumps(asdict(event), sort_keys=True) for event in [*events, *new]]
            write_text(path, "\n".join(lines) + "\n")
    return new


def _events(
    event: str, samples: Mapping[tuple[str, str], int], asset: str, key: SegmentKey, run_id: str
) -> Iterator[Event]:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    for (name, entry), n in sorted(samples.items()):
        yield Event(at, event, asset, key.crawl, key.segment, name, entry, n, run_id)
