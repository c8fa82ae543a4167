"""A shard's statistics: the contents of its ``_stats.json``, which img2dataset's users read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, Final
from urllib.parse import urlsplit

from laion_assets.download import sample_json
from laion_assets.download.outcomes import (
    FAILED_TO_DOWNLOAD,
    FAILED_TO_RESIZE,
    SUCCESS,
    Outcome,
)
from laion_assets.funnel import LISTED, StageCounts

FailingHosts = dict[str, dict[str, int]]
"""Host -> reason -> images."""

_HOSTS_SHOWN: Final = 20


@dataclass(frozen=True)
class ShardStats:
    """Statistics of one shard; times in seconds.

    ``count`` to ``status_dict`` are img2dataset's fields, by its names.
    """

    count: int
    successes: int
    failed_to_download: int
    failed_to_resize: int
    duration: float
    start_time: float
    end_time: float
    status_dict: dict[str, int]
    """``success`` or the funnel's reason -> rows."""
    exif_unreadable: int
    asked_for: int
    """Rows whose URL was asked for."""
    reused: int
    """Rows whose outcome was taken over from an earlier run."""
    changed: int
    """Rows whose bytes were not those recorded before, taken or not."""
    bytes: int
    """Bytes of the received bodies."""
    failing_hosts: FailingHosts
    options_digest: str
    """Digest of the options that decide outcomes."""
    input_digest: str | None
    """Digest of the options and the rows; None if the shard is not done."""
    counts: StageCounts
    next_row: int
    """Number of the next row that the shard gets: a row that leaves does not give its own back."""
    json_version: int = sample_json.VERSION
    """Version of the form of the tar's JSON; 0 if it is not recorded."""
    tar_bytes: int = 0
    """Size of the tar, by which a cut one is noticed; 0 until it is written."""
    tar_sha256: str = ""
    """SHA-256 of the tar, if whoever wrote it has read it back and found it whole."""
    stored_digest: str = ""
    """Digest of the samples that it was found to hold then (:func:`.digests.stored_digest`)."""
    tar_identity: tuple[int, ...] = ()
    """What :func:`laion_assets.files.identity` said of the tar then."""

    def to_json(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"counts": self.counts.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ShardStats:
        """Read what :meth:`to_json` wrote, in an earlier version, too.

        Raises ``KeyError`` if a number is missing that all versions have written.
        """
        given = {"exif_unreadable": 0, "tar_bytes": 0, "json_version": 0, **value}
        given = {"tar_sha256": "", "stored_digest": "", "tar_identity": (), **given}
        given.setdefault("next_row", value["count"])
        values = {field.name: given[field.name] for field in fields(cls)}
        values["tar_identity"] = tuple(given["tar_identity"])
        return cls(**values | {"counts": StageCounts.from_json(given["counts"])})

    @classmethod
    def of_rows(
        cls,
        urls: Sequence[str],
        outcomes: Sequence[Outcome],
        *,
        started: float,
        ended: float,
        asked_for: int,
        changed: int,
        received_bytes: int,
        options_digest: str,
        input_digest: str,
        next_row: int,
    ) -> ShardStats:
        """Count the outcomes of a shard's rows."""
        statuses = Counter(outcome.status for outcome in outcomes)
        return cls(
            count=len(outcomes),
            successes=statuses[SUCCESS],
            failed_to_download=statuses[FAILED_TO_DOWNLOAD],
            failed_to_resize=statuses[FAILED_TO_RESIZE],
            duration=ended - started,
            start_time=started,
            end_time=ended,
            status_dict=dict(Counter(outcome.reason or SUCCESS for outcome in outcomes)),
            exif_unreadable=sum(
                outcome.status == SUCCESS and outcome.exif is None for outcome in outcomes
            ),
            asked_for=asked_for,
            reused=len(outcomes) - asked_for,
            changed=changed,
            bytes=received_bytes,
            failing_hosts=_failing_hosts(urls, outcomes),
            options_digest=options_digest,
            input_digest=input_digest,
            counts=_count(urls, outcomes),
            next_row=next_row,
        )


def most_failing(hosts: Iterable[FailingHosts]) -> FailingHosts:
    """The hosts with the most failures of all, added up."""
    together: dict[str, Counter[str]] = {}
    for some in hosts:
        for host, reasons in some.items():
            together.setdefault(host, Counter()).update(reasons)
    most = sorted(together, key=lambda host: (-together[host].total(), host))[:_HOSTS_SHOWN]
    return {host: dict(together[host]) for host in most}


def host_of(url: str) -> str:
    """The URL's host; empty for text that is not a URL."""
    with suppress(ValueError):
        return urlsplit(url).hostname or ""
    return ""


def _failing_hosts(urls: Sequence[str], outcomes: Sequence[Outcome]) -> FailingHosts:
    return most_failing(
        {host_of(url): {outcome.reason: 1}}
        for url, outcome in zip(urls, outcomes, strict=True)
        if outcome.reason is not None and outcome.reason not in LISTED
    )


def _count(urls: Sequence[str], outcomes: Sequence[Outcome]) -> StageCounts:
    counts = StageCounts("images")
    for url, outcome in zip(urls, outcomes, strict=True):
        if outcome.reason is None:
            counts.keep()
        else:
            counts.reject(outcome.reason, url)
    return counts
