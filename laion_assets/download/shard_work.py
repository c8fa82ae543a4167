"""Work on shards: have the rows made that must be, and have the shard written.

What does not belong here: which shards are made (:mod:`.segment`), fetching (:mod:`.rows`), and
when an outcome that is known already is kept (:mod:`.rules`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final

from laion_assets.download.decoders import Decoders
from laion_assets.download.errors import NETWORK
from laion_assets.download.numbering import ShardRows
from laion_assets.download.outcomes import FAILED_TO_DOWNLOAD, SUCCESS, History, Outcome
from laion_assets.download.previous import Known, PreviousShards
from laion_assets.download.rows import Row, Rows, Wanted
from laion_assets.download.rules import Rules
from laion_assets.download.shard_files import name_of
from laion_assets.download.shard_stats import ShardStats, host_of
from laion_assets.download.shards import Place, gathered_in, write_shard
from laion_assets.funnel import LISTED
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

HOSTS_WITHOUT_NETWORK: Final = 3
"""With fewer failing hosts than this, blame the hosts, not our network."""

_DECIDED_HERE: Final = frozenset({"url_scheme", "private_address"}) | LISTED
"""Reasons that say nothing about the network."""

_ROWS_LOOKED_UP: Final = 256


@dataclass(frozen=True)
class _ToFetch:
    """A URL to fetch, once for all rows that have it.

    ``is_new``: it has not failed before. A repeated failure is no evidence about our network.
    """

    wanted: Wanted
    is_new: bool
    rows: list[int] = field(default_factory=list)


class _Gathered:
    """A shard's outcomes while it is made; images go to a file at once, not into memory."""

    def __init__(self, path: Path, n: int) -> None:
        self.outcomes: list[Outcome] = [Outcome(FAILED_TO_DOWNLOAD, None)] * n
        self.histories = [History()] * n
        self.places: list[Place | None] = [None] * n
        self.bytes, self.asked_for, self.changed = [0] * n, [False] * n, [False] * n
        self._name = path.name
        self._file: BinaryIO = path.open("wb")
        self._end = 0

    def add(self, rows: Sequence[int], row: Row) -> None:
        """Take a row for all rows that have its URL."""
        place = self._store(row.image) if isinstance(row.image, bytes) else row.image
        for i in rows:
            self.outcomes[i], self.histories[i], self.places[i] = row.outcome, row.history, place
            self.bytes[i] = row.bytes if i == rows[0] else 0  # they came once
            self.asked_for[i], self.changed[i] = row.asked_for, row.changed

    def _store(self, image: bytes) -> Place:
        self._file.write(image)
        self._end += len(image)
        return Place(self._name, self._end - len(image), len(image))

    def close(self) -> None:
        self._file.close()


@dataclass
class ShardWork:
    """Makes shards, several at a time, in the folder ``out``.

    ``scratch``: an own folder. ``writers``: its processes write the shards. ``open_shards``: how
    many at a time.
    """

    out: Path
    scratch: Path
    rules: Rules
    previous: PreviousShards
    writers: Decoders
    rows: Rows
    progress: Progress
    open_shards: int

    async def run(self, todo: Iterator[ShardRows]) -> dict[int, ShardStats]:
        """Make shards of these rows; return their statistics. A shard's first error ends all."""
        self._moved = asyncio.Event()
        self.new_hosts: set[str] = set()
        """Hosts, up to a few, whose failure says something about our network."""
        made: dict[int, ShardStats] = {}
        at_work: dict[asyncio.Task[ShardStats], int] = {}
        async with self.rows:
            try:
                for pairs in todo:
                    task = asyncio.create_task(self._shard(pairs))
                    task.add_done_callback(lambda _: self._moved.set())
                    at_work[task] = pairs.shard
                    # The new shard must have begun before its need of slots can be seen.
                    await self._step(at_work, made)
                    while at_work and (
                        len(at_work) >= self.open_shards or not self.rows.has_free_slot
                    ):
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
        gathered = _Gathered(gathered_in(self.scratch, shard, 0), len(urls))
        try:
            to_fetch = await self._settle(shard, gathered, urls)
            await self._fetch(gathered, to_fetch)
            no_network = await self._retry_without_network(shard, gathered, to_fetch)
            gathered.close()
            stats = self._stats(pairs, gathered, urls, started)
            if no_network:
                stats = replace(stats, input_digest=None)  # not done: the next run retries it
                for fetched in to_fetch:  # and this run's failures do not count
                    for i in fetched.rows:
                        gathered.histories[i] = fetched.wanted.history
            await self.writers.run(
                write_shard,
                self.out,
                shard,
                pairs.table,
                pairs.rows.tolist(),
                gathered.outcomes,
                gathered.histories,
                self.scratch,
                gathered.places,
                stats,
                self.rules.options,
            )
        finally:
            gathered.close()
            for path in self.scratch.glob(gathered_in(Path(), shard, "*").name):
                path.unlink()
        return stats

    async def _settle(self, shard: int, gathered: _Gathered, urls: Sequence[str]) -> list[_ToFetch]:
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
                    if url not in to_fetch:
                        to_fetch[url] = self._to_fetch(shard, url, of_url)
                    to_fetch[url].rows.append(i)
                    continue
                if outcome.status != SUCCESS:
                    encoded = None
                history = of_url.history if of_url else History()
                gathered.add([i], Row(outcome, history, encoded, asked_for=False))
                self.progress.advance()
            await asyncio.sleep(0)
        return list(to_fetch.values())

    def _to_fetch(self, shard: int, url: str, known: Known | None) -> _ToFetch:
        """``known`` may hold its image, which stays in its file, not in memory."""
        if known is None:
            return _ToFetch(Wanted(shard, url, History(), None), is_new=True)
        succeeded = known.outcome.status == SUCCESS
        keeps = succeeded and known.encoded is not None and self.rules.still_holds(known)
        wanted = Wanted(shard, url, known.history, known.outcome if keeps else None)
        return _ToFetch(wanted, is_new=succeeded or not known.history.failures)

    async def _fetch(self, gathered: _Gathered, to_fetch: Sequence[_ToFetch]) -> None:
        async def one(url: _ToFetch) -> None:
            gathered.add(url.rows, await self._row(url.wanted))
            self.progress.advance(len(url.rows))
            self._moved.set()

        tasks = [asyncio.create_task(one(url)) for url in to_fetch]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _row(self, wanted: Wanted) -> Row:
        row = await self.rows.make(wanted)
        if not row.keeps:
            return row
        found = self.previous.look_up([wanted.url])[0]
        if found is not None and found.encoded is not None:
            return replace(row, image=found.encoded)
        # Its tar was damaged just now.
        if row.refused is not None:
            return replace(row, outcome=row.refused, keeps=False)
        return await self._row(replace(wanted, kept=None))

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
                await self.rows.forget_failures()
                self.progress.done -= sum(len(url.rows) for url in to_fetch)
                await self._fetch(gathered, to_fetch)
        return True

    def _without_network(
        self, outcomes: Sequence[Outcome], to_fetch: Sequence[_ToFetch]
    ) -> Counter[str] | None:
        """The reasons, if all fetches failed as they do on a machine without network; else None."""
        reasons = Counter(outcomes[i].reason or "" for url in to_fetch for i in url.rows)
        for reason in _DECIDED_HERE:
            reasons.pop(reason, None)
        new = {host_of(url.wanted.url) for url in to_fetch if url.is_new}
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
