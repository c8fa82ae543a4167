"""Requests for removal, queued for a person to review.

The queue is not a removal list: nothing is taken out because it stands here.
"""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from laion_assets.knn.samples import Sample
from laion_assets.search.errors import RequestRefusedError

QUEUE: Final = Path("removals/queue/requests.jsonl")


class RemovalQueue:
    """The file ``<lake>/removals/queue/requests.jsonl``: one JSON object per line, synced.

    An object has `time` (UTC), `sample`, `SAMPLE_ID`, `url`, `page_url`, `text`, `sha256`, and what
    the person wrote: `reason` and `contact`. `entries` are the lines to put into a removal list.
    """

    def __init__(self, lake: Path, max_bytes: int) -> None:
        self.path = lake / QUEUE
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def append(self, sample: Sample, reason: str, contact: str) -> None:
        """Append a request. Raises :class:`RequestRefusedError` when the queue is full."""
        line = json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "sample": str(sample.ref),
                "SAMPLE_ID": sample.ref.sample_id,
                "url": sample.url,
                "page_url": sample.page_url,
                "text": sample.text,
                "sha256": sample.sha256,
                "reason": reason,
                "contact": contact,
                "entries": [f"url:{sample.url}", f"sha256:{sample.sha256}"],
            },
            ensure_ascii=True,
        )
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                if stream.tell() + len(line) + 1 > self._max_bytes:
                    raise RequestRefusedError(
                        503,
                        "queue_full",
                        "too many requests are waiting for review; please write to the operator",
                    )
                stream.write(line.encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
