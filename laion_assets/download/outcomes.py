"""Outcome of one row, and history of its URL from run to run."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

import pyarrow as pa

from laion_assets.schemas import FETCHES

SUCCESS: Final = "success"
FAILED_TO_DOWNLOAD: Final = "failed_to_download"
FAILED_TO_RESIZE: Final = "failed_to_resize"
"""img2dataset's three statuses; the last covers everything that is wrong with the bytes."""


@dataclass(frozen=True)
class Outcome:
    """Columns of a shard's parquet after the pair's own columns and the key.

    ``redirects``: the URLs that led to the image, in order; None if there were none.
    """

    status: str
    error_message: str | None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    sha256: str | None = None
    md5: str | None = None
    reason: str | None = None
    redirects: list[str] | None = None


OUTCOME_COLUMNS: Final = tuple(field.name for field in fields(Outcome))


@dataclass(frozen=True)
class History:
    """What the runs so far saw at a URL; times in seconds since 1970.

    ``attempts``: runs that asked for it. ``failures``: how many of the last of them, in a row, got
    nothing to store or to refuse for good. ``sha256``: digest of the first bytes taken, with which
    later bytes are compared. ``first_seen``, ``last_seen``: when these bytes came. ``changed``:
    when other bytes came.
    """

    attempts: int = 0
    failures: int = 0
    first_tried: float | None = None
    last_tried: float | None = None
    sha256: str | None = None
    first_seen: float | None = None
    last_seen: float | None = None
    changed: float | None = None
    changed_sha256: str | None = None

    def tried(self) -> History:
        """The history after one more run has asked for the URL."""
        now = time.time()
        return replace(
            self,
            attempts=self.attempts + 1,
            first_tried=now if self.first_tried is None else self.first_tried,
            last_tried=now,
        )

    def failed(self) -> History:
        """The history after one more failure."""
        return replace(self, failures=self.failures + 1)

    def answered(self) -> History:
        """The history after an answer, which ends a row of failures."""
        return replace(self, failures=0)

    def took(self, sha256: str) -> History:
        """The history after these bytes came and were taken."""
        now = time.time()
        known = self.sha256 == sha256 and self.first_seen is not None
        first = self.first_seen if known else now
        return replace(self, sha256=sha256, first_seen=first, last_seen=now)

    def differed(self, sha256: str) -> History:
        """The history after other bytes came than those recorded."""
        return replace(self, changed=time.time(), changed_sha256=sha256)


_TIMES: Final = ("first_tried", "last_tried", "first_seen", "last_seen", "changed")


def ledger_table(keys: list[str], urls: list[str], histories: list[History]) -> pa.Table:
    """A table of :data:`laion_assets.schemas.FETCHES`."""
    rows = [
        {"key": key, "url": url, **_as_stored(history)}
        for key, url, history in zip(keys, urls, histories, strict=True)
    ]
    return pa.Table.from_pylist(rows, FETCHES)


def histories_of(table: pa.Table) -> list[History]:
    """The histories of a table of :data:`laion_assets.schemas.FETCHES`."""
    names = [field.name for field in fields(History)]
    for name in _TIMES:
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table[name].cast(pa.int64()))
    return [History(**_as_seconds(row)) for row in table.select(names).to_pylist()]


def _as_stored(history: History) -> dict[str, Any]:
    row = asdict(history)
    for name in _TIMES:
        row[name] = None if row[name] is None else round(row[name] * 1000)
    return row


def _as_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: None if row[name] is None else row[name] / 1000 for name in _TIMES}
