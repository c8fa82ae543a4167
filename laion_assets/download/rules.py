"""Rules that decide a row's outcome beside the row and the web: options, lists, earlier outcomes.

What does not belong here: fetching (:mod:`.shard_work`), and the lake's partitions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa

from laion_assets.download.digests import digest_of, rows_digest
from laion_assets.download.errors import ON_A_LIST, TRANSIENT, FetchRefused, ImageRefused
from laion_assets.download.images import Checksums, refuse_listed
from laion_assets.download.listed_rows import LOOKED_AT, named_rows
from laion_assets.download.numbering import ShardRows
from laion_assets.download.options import DownloadOptions
from laion_assets.download.outcomes import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, Outcome
from laion_assets.download.previous import UNREADABLE, Known
from laion_assets.download.requester import as_asked
from laion_assets.download.shard_files import files_of, read_shard
from laion_assets.download.shard_stats import ShardStats
from laion_assets.funnel import LISTED
from laion_assets.options import versioned
from laion_assets.removals.active import Lists

_OUTCOME_RULES: Final = 1
"""Version of what decides an outcome beside the options."""


class Rules:
    """The options and lists of one download."""

    def __init__(self, options: DownloadOptions, lists: Lists) -> None:
        self.options = options
        self.lists = lists
        self.options_digest = digest_of([_OUTCOME_RULES, versioned(options)])

    def digest(self, pairs: ShardRows) -> str:
        """Digest of what decides a shard, apart from the lists: its rows and the options."""
        return rows_digest(pairs.table, pairs.rows.tolist(), self.options_digest)

    def is_current(self, folder: Path, shard: int, stats: ShardStats, digest: str | None) -> bool:
        """Whether a finished shard is what a new download would start from.

        It was made of the rows and options of ``digest``, and the rows that it refused for a list
        are exactly those that the lists name now.
        """
        if stats.input_digest != digest:
            return False
        if not self.lists:
            return not LISTED & set(stats.status_dict)
        try:
            named, refused = self.listed_rows(read_shard(files_of(folder, shard)[0], LOOKED_AT))
        except UNREADABLE:
            return False  # the warning comes when its rows are looked up
        return named == refused

    def listed_rows(self, rows: pa.Table) -> tuple[set[int], set[int]]:
        """Which rows of a shard the lists name, and which were refused for a list.

        ``rows``: with :data:`LOOKED_AT`.
        """
        named, refused = named_rows(rows, self.lists, samples=False)
        return {found.row for found in named}, refused

    def without_refetching(self) -> Rules:
        """The same rules, with which nothing that has an outcome is fetched again."""
        options = self.options.model_copy(update={"refetch": "none", "take_changed": False})
        return Rules(options, self.lists)

    def listed(self, url: str) -> str | None:
        """The reason to refuse a URL that a list names, or None."""
        if self.lists.removals.matches_url(url):
            return "removed"
        return "blocked" if self.lists.blocklists.matches_url(url) else None

    def may_refetch(self, stats: ShardStats) -> bool:
        """Whether a shard with these statistics may hold rows to refetch."""
        if self.options.refetch == "all":
            return True
        reasons = set(stats.status_dict)
        transient = self.options.refetch == "transient" and bool(reasons & TRANSIENT)
        return transient or (self.options.take_changed and "changed" in reasons)

    def still_holds(self, known: Known) -> bool:
        """Whether the outcome was made with the present options; the lists are not considered."""
        return known.options == self.options_digest

    def settled(self, url: str, known: Known | None) -> Outcome | None:
        """The outcome of a row whose URL need not be fetched; None if it must be."""
        refused = self._refused_by_list(url, known)
        if refused is not None:
            return refused
        if known is None or not self.still_holds(known) or self.options.refetch == "all":
            return None
        reason = known.outcome.reason
        if reason in LISTED:
            return None  # no list names it any longer
        if reason == "changed" and self.options.take_changed:
            return None
        given_up = known.history.failures >= self.options.give_up_after
        if reason in TRANSIENT and self.options.refetch == "transient" and not given_up:
            return None
        return known.outcome

    def _refused_by_list(self, url: str, known: Known | None) -> Outcome | None:
        redirects = (known.outcome.redirects if known else None) or []
        for step in (url, *redirects):
            reason = self.listed(as_asked(step))
            if reason is not None:
                refused = FetchRefused(reason, ON_A_LIST)
                # The redirects are kept, so that the row itself shows what it was refused for.
                return Outcome(
                    FAILED_TO_DOWNLOAD, str(refused), reason=reason, redirects=redirects or None
                )
        if known is not None and known.outcome.sha256 and known.outcome.md5:
            try:
                sums = Checksums(known.outcome.sha256, known.outcome.md5)
                refuse_listed(sums, self.lists)
            except ImageRefused as refusal:
                return refused_image(refusal, sums, redirects)
        return None


def refused_image(refusal: ImageRefused, sums: Checksums, redirects: list[str] | None) -> Outcome:
    """The outcome of bytes that came and are not stored."""
    return Outcome(
        FAILED_TO_RESIZE,
        str(refusal),
        sha256=sums.sha256,
        md5=sums.md5,
        reason=refusal.reason,
        redirects=redirects or None,
    )
