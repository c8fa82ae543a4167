"""The statistics of a shard, a published format."""

from __future__ import annotations

import json

import pytest

from laion_assets.download.outcomes import FAILED_TO_DOWNLOAD, SUCCESS, Outcome
from laion_assets.download.shard_stats import ShardStats, most_failing

ROWS = {
    "http://a.test/1.jpg": Outcome(SUCCESS, None, exif="{}"),
    "http://a.test/2.jpg": Outcome(SUCCESS, None),
    "http://b.test/3.jpg": Outcome(FAILED_TO_DOWNLOAD, "dns: no", reason="dns"),
    "http://listed.test/4.jpg": Outcome(FAILED_TO_DOWNLOAD, "removed: x", reason="removed"),
}
PUBLISHED = {
    "count": 4,
    "successes": 2,
    "failed_to_download": 2,
    "failed_to_resize": 0,
    "duration": 1.5,
    "start_time": 10.0,
    "end_time": 11.5,
    "status_dict": {"success": 2, "dns": 1, "removed": 1},
    "exif_unreadable": 1,
    "asked_for": 3,
    "reused": 1,
    "changed": 0,
    "bytes": 999,
    "failing_hosts": {"b.test": {"dns": 1}},
    "options_digest": "o",
    "input_digest": "i",
    "counts": {
        "stage": "images",
        "in": 4,
        "kept": 2,
        "rejects": {"dns": 1, "removed": 1},
        "examples": {"dns": ["http://b.test/3.jpg"]},
    },
    "tar_bytes": 0,
    "next_row": 5,
    "json_version": 1,
    "tar_sha256": "",
    "stored_digest": "",
    "tar_identity": (),
}


def test_the_published_fields() -> None:
    stats = ShardStats.of_rows(
        list(ROWS),
        list(ROWS.values()),
        started=10.0,
        ended=11.5,
        asked_for=3,
        changed=0,
        received_bytes=999,
        options_digest="o",
        input_digest="i",
        next_row=5,
    )
    assert stats.to_json() == PUBLISHED
    assert ShardStats.from_json(json.loads(json.dumps(stats.to_json()))) == stats


@pytest.mark.parametrize(
    ("name", "value"),
    [("exif_unreadable", 0), ("tar_bytes", 0), ("next_row", 4), ("stored_digest", "")],
)
def test_statistics_of_before_a_number_was_counted_are_read(name: str, value: object) -> None:
    older = {field: value for field, value in PUBLISHED.items() if field != name}
    assert getattr(ShardStats.from_json(older), name) == value


def test_the_most_failing_hosts_are_added_up() -> None:
    many = [{f"h{i}.test": {"dns": 1}} for i in range(30)]
    hosts = most_failing([*many, {"z.test": {"dns": 1, "connect": 2}}, {"z.test": {"dns": 3}}])
    assert len(hosts) == 20
    assert next(iter(hosts.items())) == ("z.test", {"dns": 4, "connect": 2})
