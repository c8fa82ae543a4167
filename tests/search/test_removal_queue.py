"""The review queue: bounded, without repetitions, and never with half a line."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from laion_assets.knn.samples import Sample, SampleRef
from laion_assets.search.errors import RequestRefusedError
from laion_assets.search.removal_queue import RemovalQueue

ROOMY = 1_000_000


def sample(number: int = 0) -> Sample:
    return Sample(
        ref=SampleRef("CC-MAIN-2000-05", "00", f"{number:09d}", number),
        url=f"http://pictures.test/{number}.jpg",
        text="a cat",
        width=300,
        height=300,
        license="?",
        nsfw="UNLIKELY",
        similarity=0.3,
        language="en",
        page_url="http://page.test/",
        sha256=f"{number:064x}",
    )


def lines(queue: RemovalQueue) -> list[dict[str, Any]]:
    return [json.loads(line) for line in queue.path.read_text().splitlines()]


def refusal(queue: RemovalQueue, of: Sample, reason: str) -> tuple[int, str]:
    with pytest.raises(RequestRefusedError) as refused:
        queue.append(of, reason, "")
    return refused.value.status, refused.value.reason


@contextmanager
def files_up_to(n: int) -> Iterator[None]:
    """A disk on which no file grows above ``n`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_repeated_request_waits_once(tmp_path: Path) -> None:
    for queue in (RemovalQueue(tmp_path, ROOMY), RemovalQueue(tmp_path, ROOMY)):
        for _ in range(3):
            queue.append(sample(), "it is mine", "me@example.org")
    assert [(line["reason"], line["contact"]) for line in lines(queue)] == [
        ("it is mine", "me@example.org")
    ]


def test_a_line_is_short_and_safe_to_show(tmp_path: Path) -> None:
    queue = RemovalQueue(tmp_path, ROOMY)
    reason = "das bin ich \U0001f600\x9b31m\x1b[2J\u202e\u2028"
    queue.append(sample(), reason, "")
    text = queue.path.read_text("utf-8")
    assert "das bin ich \U0001f600\\u009b" in text
    assert text.removesuffix("\n").isprintable()
    assert [line["reason"] for line in lines(queue)] == [reason]


def test_one_sample_cannot_fill_the_queue(tmp_path: Path) -> None:
    queue = RemovalQueue(tmp_path, ROOMY)
    for number in range(5):
        queue.append(sample(), f"reason {number}", "")
    assert refusal(queue, sample(), "another") == (409, "already_waiting")
    queue.append(sample(), "reason 3", "")
    queue.append(sample(1), "another", "")
    assert len(lines(queue)) == 6


def test_a_reviewed_queue_takes_requests_again(tmp_path: Path) -> None:
    queue = RemovalQueue(tmp_path, ROOMY)
    queue.append(sample(), "mine", "")
    queue.path.write_text('a note of the reviewer\n{"sample": 3}\n')
    queue.append(sample(), "mine", "")
    queue.append(sample(), "mine", "")
    assert len(queue.path.read_text().splitlines()) == 3


def test_a_full_queue_refuses(tmp_path: Path) -> None:
    queue = RemovalQueue(tmp_path, 1_000)
    with pytest.raises(RequestRefusedError, match="write to the operator") as refused:
        for number in range(10):
            queue.append(sample(number), "mine", "")
    assert refused.value.reason == "queue_full"
    assert lines(queue)
    assert queue.path.stat().st_size <= 1_000


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    queue = RemovalQueue(tmp_path, ROOMY)
    queue.append(sample(), "mine", "")
    with files_up_to(queue.path.stat().st_size + 50):
        assert refusal(queue, sample(1), "mine") == (503, "queue_full")
    queue.append(sample(2), "mine", "")
    assert [line["SAMPLE_ID"] for line in lines(queue)] == [0, 2]
