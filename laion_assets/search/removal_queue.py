"""Requests for removal, queued for a person to review.

The queue is not a removal list: nothing is taken out because it stands here.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from laion_assets.files import Identity, identity
from laion_assets.knn.samples import Sample
from laion_assets.search.errors import RequestRefusedError

QUEUE: Final = Path("removals/queue/requests.jsonl")
_UNSEEN: Final = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys, and JSON does not escape by itself."""
_OF_A_SAMPLE: Final = 5
"""Different requests for one sample that wait at the same time."""


class RemovalQueue:
    """The file ``<lake>/removals/queue/requests.jsonl``: one JSON object per line, synced.

    An object has `time` (UTC), `sample`, `SAMPLE_ID`, `url`, `page_url`, `text`, `sha256`, and what
    the person wrote: `reason` and `contact`. `entries` are the lines to put into a removal list.
    """

    def __init__(self, lake: Path, max_bytes: int) -> None:
        self.path = lake / QUEUE
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._waiting = _Waiting()

    def append(self, sample: Sample, reason: str, contact: str) -> None:
        """Append a request, unless the same one is in the queue already.

        Raises :class:`RequestRefusedError` when the queue or the disk is full, or when enough other
        requests for the sample are waiting.
        """
        asked = {
            "sample": str(sample.ref),
            "SAMPLE_ID": sample.ref.sample_id,
            "url": sample.url,
            "page_url": sample.page_url,
            "text": sample.text,
            "sha256": sample.sha256,
            "reason": reason,
            "contact": contact,
            "entries": [f"url:{sample.url}", f"sha256:{sample.sha256}"],
        }
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = _line({"time": now} | asked)
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                # Another service of the same lake may append at the same time.
                fcntl.flock(stream, fcntl.LOCK_EX)
                # A person empties the file when it has been reviewed.
                if self._waiting.read_from != identity(self.path):
                    self._waiting = _Waiting.read(self.path)
                if self._waiting.refuses(asked):
                    return
                if stream.tell() + len(line) > self._max_bytes:
                    raise _full("too many requests are waiting for review")
                self._write(stream.fileno(), line)
                self._waiting.add(asked)
                self._waiting.read_from = identity(self.path)

    def _write(self, handle: int, line: bytes) -> None:
        before = os.fstat(handle).st_size
        try:
            written = os.write(handle, line)
            if written < len(line):  # what a full disk does to a line that it has no room for
                raise OSError("the line was cut")
            os.fsync(handle)
        except OSError as error:
            # Half a line would be joined with the next one.
            os.ftruncate(handle, before)
            raise _full(f"the queue cannot be written ({error.strerror or error})") from error


class _Waiting:
    """The requests that stand in the file."""

    def __init__(self) -> None:
        self._of_sample: dict[str, set[int]] = {}
        self.read_from: Identity | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        waiting = cls()
        with path.open("rb") as stream:
            waiting.read_from = identity(stream.fileno())
            for line in stream:
                try:
                    waiting.add(json.loads(line))
                except (ValueError, KeyError, TypeError):  # a person may have edited the file
                    continue
        return waiting

    def refuses(self, asked: dict[str, Any]) -> bool:
        """Return True for a repeated request. Raises :class:`RequestRefusedError` for one too
        many."""
        known = self._of_sample.get(asked["sample"], set())
        if _name(asked) in known:
            return True
        if len(known) >= _OF_A_SAMPLE:
            raise RequestRefusedError(
                409,
                "already_waiting",
                f"{len(known)} requests to remove this are waiting for review already; please "
                "write to the operator if there is more to say",
            )
        return False

    def add(self, asked: dict[str, Any]) -> None:
        self._of_sample.setdefault(asked["sample"], set()).add(_name(asked))


def _line(asked: dict[str, Any]) -> bytes:
    """JSON in UTF-8, in which a character takes a third of its escape."""
    text = json.dumps(asked, ensure_ascii=False)
    return _UNSEEN.sub(lambda unseen: f"\\u{ord(unseen[0]):04x}", text).encode() + b"\n"


def _name(asked: dict[str, Any]) -> int:
    return hash((asked["sample"], asked["reason"], asked["contact"]))


def _full(why: str) -> RequestRefusedError:
    return RequestRefusedError(503, "queue_full", f"{why}; please write to the operator")
