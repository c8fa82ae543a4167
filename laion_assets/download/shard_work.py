"""Work on shards: fetch what must be fetched, have the images made, have the shard written.

What does not belong here: which shards are made (:mod:`.segment`), and when an outcome that is
known already is kept (:mod:`.rules`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from laion_assets.download.decoders import ImageMakers, Spent
from laion_assets.download.errors import NETWORK, TRANSIENT, FetchRefused, ImageRefused
from laion_assets.download.fetch import Fetcher
from laion_assets.download.images import Checksums, refuse_listed, refuse_unseen
from laion_assets.download.numbering import ShardRows
from laion_assets.download.outcomes import FAILED_TO_DOWNLOAD, SUCCESS, History, Outcome
from laion_assets.download.previous import Known, PreviousShards
from laion_assets.download.rules import Rules, refused_image
from laion_assets.download.shard_files import name_of
from laion_assets.download.shard_stats import ShardStats, host_of
from laion_assets.download.shards import Place, write_shard
from laion_assets.funnel import LISTED
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

HOSTS_WITHOUT_NETWORK: Final = 3
"""With fewer failing hosts than this, blame the hosts, not our network."""

_OPT_OUTS: Final = frozenset({"opt_out", "robots", "removed", "blocked", "private_address"})
"""Reasons for which an image of an earlier version is not kept either."""

_DECIDED_HERE: Final = frozenset({"url_scheme", "private_address"}) | LISTED
"""Reasons that say nothing about the network."""

_OPEN_SHARDS: Final = 3
_ROWS_LOOKED_UP: Final = 256


@dataclass
class _Row:
    """What one fetch gave for a row; ``encoded`` is the image to store, if any."""

    outcome: Outcome
    encoded: bytes | None
    history: History
    bytes: int = 0
    asked_for: bool = True
    changed: bool = False


@dataclass(frozen=True)
class _ToFetch:
    """A URL to fetch, once for all rows that have it."""

    url: str
    rows: list[int]
    known: Known | None

    @property
    def history(self) -> History:
        return self.known.history if self.known else History()

    @property
    def is_new(self) -> bool:
        """True if this URL has not failed before.

        A repeated failure is no evidence about our network.
        """
        return (
            self.known is None or self.known.outcome.status == SUCCESS or not self.history.failures
        )


class _Gathered:
    """A shard's outcomes while it is made; images go to a file at once, not into memory."""

    def __init__(self, path: Path, n: int) -> None:
        self.path = path
        self.outcomes: list[Outcome] = [Outcome(FAILED_TO_DOWNLOAD, None)] * n
        self.histories = [History()] * n
        self.places: list[Place | None] = [None] * n
        self.bytes, self.asked_for, self.changed = [0] * n, [False] * n, [False] * n
        self._file: BinaryIO = path.open("wb")
        self._end = 0

    def add(self, i: int, row: _Row) -> None:
        self.outcomes[i], self.histories[i], self.places[i] = row.outcome, row.history, None
        if row.encoded is not None:
            self._file.write(row.encoded)
            self.places[i] = Place(self._end, len(row.encoded))
            self._end += len(row.encoded)
        self.bytes[i], self.asked_for[i], self.changed[i] = row.bytes, row.asked_for, row.changed

    def close(self) -> None:
        self._file.close()


@dataclass
class ShardWork:
    """Makes shards, several at a time, in the folder ``out``.

    ``scratch``: an own folder.
    """

    out: Path
    scratch: Path
    rules: Rules
    previous: PreviousShards
    decoders: ImageMakers
    fetcher: Fetcher
    progress: Progress

    async def run(self, todo: Iterator[ShardRows]) -> dict[int, ShardStats]:
        """Make shards of these rows; return their statistics. A shard's first error ends all."""
        self._moved = asyncio.Event()
        self.new_hosts: set[str] = set()
        """Hosts, up to a few, whose failure says something about our network."""
        made: dict[int, ShardStats] = {}
        at_work: dict[asyncio.Task[ShardStats], int] = {}
        async with self.fetcher:
            try:
                for pairs in todo:
                    task = asyncio.create_task(self._shard(pairs))
                    task.add_done_callback(lambda _: self._moved.set())
                    at_work[task] = pairs.shard
                    # The new shard must have begun before its need of slots can be seen.
                    await self._step(at_work, made)
                    while len(at_work) >= _OPEN_SHARDS or not self.fetcher.has_free_slot:
                        await self._step(at_work, made)
                while at_work:
                    await self._step(at_work, made)
            finally:
                for task in at_work:
                    task.cancel()
                await asyncio.gather(*at_work, return_exceptions=True)
        return made

    async def _step(
        self, at_work: dict[asyncio.Task[ShardStats], int], made: dict[int, ShardStats]
    ) -> None:
        """Wait until a row or a shard is done."""
        await self._moved.wait()
        self._moved.clear()
        for task in [task for task in at_work if task.done()]:
            made[at_work.pop(task)] = task.result()

    async def _shard(self, pairs: ShardRows) -> ShardStats:
        started, shard = time.time(), pairs.shard
        urls = [url or "" for url in pairs.table["url"].to_pylist()]
        gathered = _Gathered(self.scratch / name_of(shard), len(urls))
        try:
            to_fetch = await self._settle(gathered, urls)
            await self._fetch(gathered, to_fetch)
            no_network = await self._retry_without_network(shard, gathered, to_fetch)
            gathered.close()
            stats = self._stats(pairs, gathered, urls, started)
            if no_network:
                stats = replace(stats, input_digest=None)  # not done: the next run retries it
                for fetched in to_fetch:  # and this run's failures do not count
                    for i in fetched.rows:
                        gathered.histories[i] = fetched.history
            await self.decoders.run(
                write_shard,
                self.out,
                shard,
                pairs.table,
                pairs.rows.tolist(),
                gathered.outcomes,
                gathered.histories,
                gathered.path,
                gathered.places,
                stats,
                self.rules.options,
            )
        finally:
            gathered.close()
            gathered.path.unlink(missing_ok=True)
        return stats

    async def _settle(self, gathered: _Gathered, urls: Sequence[str]) -> list[_ToFetch]:
        """Take over the outcomes that are settled; return the URLs to fetch."""
        to_fetch: dict[str, _ToFetch] = {}
        for start in range(0, len(urls), _ROWS_LOOKED_UP):
            looked_up = urls[start : start + _ROWS_LOOKED_UP]
            known = (
                self.previous.look_up(looked_up) if len(self.previous) else [None] * len(looked_up)
            )
            for i, (url, of_url) in enumerate(zip(looked_up, known, strict=True), start):
                outcome = self.rules.settled(url, of_url)
                encoded = of_url.encoded if of_url else None
                if outcome is None or (outcome.status == SUCCESS and encoded is None):
                    # The image stays in its file, not in memory.
                    slim = replace(of_url, encoded=None) if of_url else None
                    to_fetch.setdefault(url, _ToFetch(url, [], slim)).rows.append(i)
                    continue
                if outcome.status != SUCCESS:
                    encoded = None
                history = of_url.history if of_url else History()
                gathered.add(i, _Row(outcome, encoded, history, asked_for=False))
                self.progress.advance()
            await asyncio.sleep(0)
        return list(to_fetch.values())

    async def _fetch(self, gathered: _Gathered, to_fetch: Sequence[_ToFetch]) -> None:
        async def one(wanted: _ToFetch) -> None:
            row = await self._row(wanted)
            for i in wanted.rows:
                gathered.add(i, row)
                row = replace(row, bytes=0)  # they came once
            self.progress.advance(len(wanted.rows))
            self._moved.set()

        tasks = [asyncio.create_task(one(wanted)) for wanted in to_fetch]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _row(self, wanted: _ToFetch) -> _Row:
        history = wanted.history.tried()
        body = b""
        try:
            async with self.fetcher.fetching(wanted.url) as fetched:
                body, redirects = fetched.body, list(fetched.redirects) or None
                sums = Checksums.of(body)
                history = history.answered()
                if history.sha256 not in (None, sums.sha256):
                    history = history.differed(sums.sha256)
                try:
                    # First, because changed bytes may be listed, too.
                    refuse_listed(sums, self.rules.lists)
                    differs = history.sha256 not in (None, sums.sha256)
                    if differs and not self.rules.options.take_changed:
                        raise ImageRefused(
                            "changed", f"SHA-256 {sums.sha256}, recorded {history.sha256}"
                        )
                    spent = partial(self.fetcher.decoded, fetched)
                    return await self._examine(wanted, body, sums, redirects, history, spent)
                except ImageRefused as refused:
                    if refused.reason in TRANSIENT:
                        history = history.failed()
                    outcome = refused_image(refused, sums, redirects)
                    return self._kept(wanted, outcome, history, len(body))
        except FetchRefused as refused:
            history = history.failed() if refused.asked else wanted.history
            hops = list(refused.redirects) if refused.reason in LISTED else []
            outcome = Outcome(
                FAILED_TO_DOWNLOAD, str(refused), reason=refused.reason, redirects=hops or None
            )
            return self._kept(wanted, outcome, history, len(body))

    def _kept(self, wanted: _ToFetch, outcome: Outcome, history: History, received: int) -> _Row:
        """The row of a refusal, or of the previous image if the refusal is no reason to drop it."""
        row = _Row(outcome, None, history, received, changed=outcome.reason == "changed")
        known = None if outcome.reason in _OPT_OUTS else self._previous_image(wanted)
        return replace(row, outcome=known.outcome, encoded=known.encoded) if known else row

    def _previous_image(self, wanted: _ToFetch) -> Known | None:
        """The image of an earlier version, if the present options would make the same."""
        known = wanted.known
        if known is None or known.outcome.status != SUCCESS or not self.rules.still_holds(known):
            return None
        found = self.previous.look_up([wanted.url])[0]
        return found if found and found.encoded else None

    async def _examine(
        self,
        wanted: _ToFetch,
        body: bytes,
        sums: Checksums,
        redirects: list[str] | None,
        history: History,
        spent: Spent,
    ) -> _Row:
        """The row of a body that is taken. Raises :class:`ImageRefused`."""
        changed = history.changed_sha256 == sums.sha256 != history.sha256
        known = self._previous_image(wanted)
        if known and known.outcome.sha256 == sums.sha256:
            outcome, encoded = replace(known.outcome, redirects=redirects), known.encoded
        else:
            refuse_unseen(body, self.rules.options.min_bytes)
            image = await self.decoders.make(body, spent)
            encoded = image.encoded
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
        return _Row(outcome, encoded, history.took(sums.sha256), len(body), changed=changed)

    async def _retry_without_network(
        self, shard: int, gathered: _Gathered, to_fetch: Sequence[_ToFetch]
    ) -> bool:
        """Fetch again, after longer and longer waits, while all fetches fail for the network.

        Return whether they still did at the end.
        """
        options = self.rules.options
        waits = [options.network_wait_s * 2**i for i in range(options.network_retries)]
        for wait in [*waits, None]:
            failed = self._without_network(gathered.outcomes, to_fetch)
            if failed is None:
                return False
            logger.warning(
                f"shard {name_of(shard)}: {failed.total():,} downloads failed, all for "
                f"network reasons ({in_words(failed)}); "
                + (
                    f"trying again in {wait:g} s"
                    if wait is not None
                    else "the next run tries again"
                )
            )
            if wait is not None:
                await asyncio.sleep(wait)
                self.fetcher.forget_failures()
                self.progress.done -= sum(len(wanted.rows) for wanted in to_fetch)
                await self._fetch(gathered, to_fetch)
        return True

    def _without_network(
        self, outcomes: Sequence[Outcome], to_fetch: Sequence[_ToFetch]
    ) -> Counter[str] | None:
        """The reasons, if all fetches failed as they do on a machine without network; else None."""
        reasons = Counter(outcomes[i].reason or "" for wanted in to_fetch for i in wanted.rows)
        for reason in _DECIDED_HERE:
            reasons.pop(reason, None)
        new = {host_of(wanted.url) for wanted in to_fetch if wanted.is_new}
        if len(self.new_hosts) < HOSTS_WITHOUT_NETWORK:
            self.new_hosts |= new
        if not reasons or not reasons.keys() <= NETWORK:
            return None
        return reasons if len(new) >= HOSTS_WITHOUT_NETWORK else None

    def _stats(
        self, pairs: ShardRows, gathered: _Gathered, urls: Sequence[str], started: float
    ) -> ShardStats:
        return ShardStats.of_rows(
            urls,
            gathered.outcomes,
            started=started,
            ended=time.time(),
            asked_for=sum(gathered.asked_for),
            changed=sum(gathered.changed),
            received_bytes=sum(gathered.bytes),
            options_digest=self.rules.options_digest,
            input_digest="",  # the process that writes the shard adds it
            next_row=pairs.next_row,
        )


def in_words(rejects: Mapping[str, int]) -> str:
    """Reasons with their counts, for a message: ``connect 2, dns 5``."""
    return ", ".join(f"{reason} {n}" for reason, n in sorted(rejects.items()))
