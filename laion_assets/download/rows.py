"""Make rows: fetch a URL, judge its bytes, have its image made.

What does not belong here: shards (:mod:`.shard_work`), earlier versions of them, and in which
process this happens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from laion_assets.download.decoders import ImageMakers
from laion_assets.download.errors import TRANSIENT, FetchRefused, ImageRefused
from laion_assets.download.fetch import Attempt, Fetcher, FinishedElsewhere
from laion_assets.download.images import Checksums, refuse_listed, refuse_unseen
from laion_assets.download.outcomes import FAILED_TO_DOWNLOAD, SUCCESS, History, Outcome
from laion_assets.download.requester import Fetched
from laion_assets.download.rules import Rules, refused_image
from laion_assets.download.shards import Place
from laion_assets.funnel import LISTED

_OPT_OUTS: Final = frozenset({"opt_out", "robots", "removed", "blocked", "private_address"})
"""Reasons for which an image of an earlier version is not kept either."""


@dataclass(frozen=True)
class Wanted:
    """A URL to fetch for a shard.

    ``kept``: the outcome of the image that an earlier version of the shard has, if it still has
    the image, and the present options would make the same.
    """

    shard: int
    url: str
    history: History
    kept: Outcome | None


@dataclass(frozen=True)
class Row:
    """What one fetch gave for a row.

    ``image``: the image to store, or its place, if any. ``keeps``: it is that of the earlier
    version. ``refused``: the outcome if that image is lost; None if the host has just sent it.
    """

    outcome: Outcome
    history: History
    image: bytes | Place | None = None
    keeps: bool = False
    refused: Outcome | None = None
    bytes: int = 0
    asked_for: bool = True
    changed: bool = False


class Rows(Protocol):
    """Makes rows, in this process or in others; use as an ``async with`` context."""

    @property
    def answers(self) -> int:
        """Responses that have begun to arrive; whatever they say, the network works."""

    @property
    def has_free_slot(self) -> bool:
        """Whether the hosts' limits leave some of ``concurrency`` unused."""

    async def __aenter__(self) -> Rows: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def make(self, wanted: Wanted) -> Row:
        """The row of a URL, whatever became of it."""

    async def forget_failures(self) -> None:
        """Give names and hosts that failed another chance."""


class RowMaker:
    """Makes rows in this process."""

    def __init__(self, rules: Rules, fetcher: Fetcher, decoders: ImageMakers) -> None:
        self._rules = rules
        self._fetcher = fetcher
        self._decoders = decoders

    @property
    def answers(self) -> int:
        return self._fetcher.answers

    @property
    def has_free_slot(self) -> bool:
        return self._fetcher.has_free_slot

    async def __aenter__(self) -> RowMaker:
        await self._fetcher.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._fetcher.__aexit__()

    async def forget_failures(self) -> None:
        self._fetcher.forget_failures()

    async def make(self, wanted: Wanted) -> Row:
        history = wanted.history.tried()
        try:
            async with self._fetcher.fetching(wanted.url, wanted) as fetched:
                return await self._judge(wanted, fetched, history)
        except FinishedElsewhere as finished:
            row: Row = finished.made
            return row
        except FetchRefused as refused:
            history = history.failed() if refused.asked else wanted.history
            hops = list(refused.redirects) if refused.reason in LISTED else []
            outcome = Outcome(
                FAILED_TO_DOWNLOAD, str(refused), reason=refused.reason, redirects=hops or None
            )
            return _kept(wanted, outcome, history, 0)

    async def finish(self, begun: Attempt) -> Row | Fetched:
        """Finish another process's attempt for a :class:`Wanted`; a robots.txt is only fetched.

        Raises :class:`FetchRefused`.
        """
        try:
            async with self._fetcher.finishing(begun) as fetched:
                if begun.robots_txt:
                    return fetched
                wanted: Wanted = begun.job
                return await self._judge(wanted, fetched, wanted.history.tried())
        except FinishedElsewhere as finished:
            made: Row | Fetched = finished.made
            return made

    async def _judge(self, wanted: Wanted, fetched: Fetched, history: History) -> Row:
        """The row of a body that came."""
        body, redirects = fetched.body, list(fetched.redirects) or None
        sums = Checksums.of(body)
        history = history.answered()
        if history.sha256 not in (None, sums.sha256):
            history = history.differed(sums.sha256)
        try:
            # First, because changed bytes may be listed, too.
            refuse_listed(sums, self._rules.lists)
            differs = history.sha256 not in (None, sums.sha256)
            if differs and not self._rules.options.take_changed:
                raise ImageRefused("changed", f"SHA-256 {sums.sha256}, recorded {history.sha256}")
            return await self._take(wanted, fetched, sums, redirects, history)
        except ImageRefused as refused:
            if refused.reason in TRANSIENT:
                history = history.failed()
            outcome = refused_image(refused, sums, redirects)
            return _kept(wanted, outcome, history, len(body))

    async def _take(
        self,
        wanted: Wanted,
        fetched: Fetched,
        sums: Checksums,
        redirects: list[str] | None,
        history: History,
    ) -> Row:
        """The row of a body that is taken. Raises :class:`ImageRefused`."""
        body, kept = fetched.body, wanted.kept
        changed = history.changed_sha256 == sums.sha256 != history.sha256
        row = Row(
            Outcome(SUCCESS, None), history.took(sums.sha256), bytes=len(body), changed=changed
        )
        if kept is not None and kept.sha256 == sums.sha256:
            return replace(row, outcome=replace(kept, redirects=redirects), keeps=True)
        refuse_unseen(body, self._rules.options.min_bytes)
        # A body holds one of its host's slots until it is decoded: served in order, the host with
        # most images would finish last.
        urgency = self._fetcher.urgency(fetched)
        image = await self._decoders.make(body, urgency, partial(self._fetcher.decoded, fetched))
        outcome = Outcome(
            SUCCESS,
            None,
            image.width,
            image.height,
            image.original_width,
            image.original_height,
            image.exif,
            sums.sha256,
            sums.md5,
            redirects=redirects,
        )
        return replace(row, outcome=outcome, image=image.encoded)


def _kept(wanted: Wanted, outcome: Outcome, history: History, received: int) -> Row:
    """The row of a refusal, or of the earlier image if the refusal is no reason to drop it."""
    row = Row(outcome, history, bytes=received, changed=outcome.reason == "changed")
    if wanted.kept is None or outcome.reason in _OPT_OUTS:
        return row
    return replace(row, outcome=wanted.kept, keeps=True, refused=outcome)
