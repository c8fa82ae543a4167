"""A segment's pairs to webdataset shards, as img2dataset writes them.

One process fetches, asynchronously and for several shards at a time, so that a shard's slowest
hosts do not hold up the next; the pool of ``decoders`` makes the images and writes the shards.
What does not belong here: the lake's partitions.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.download.addresses import Resolve, system_resolve
from laion_assets.download.decoders import Decoders
from laion_assets.download.errors import ON_A_LIST, FetchRefused, ImageRefused
from laion_assets.download.fetch import PASSING, Fetcher, as_asked
from laion_assets.download.images import Checksums, refuse_listed, refuse_unseen
from laion_assets.download.listed_rows import named_rows
from laion_assets.download.options import DownloadOptions
from laion_assets.download.outcomes import (
    FAILED_TO_DOWNLOAD,
    FAILED_TO_RESIZE,
    SUCCESS,
    History,
    Outcome,
)
from laion_assets.download.previous import UNREADABLE, Earlier, Known
from laion_assets.download.shards import (
    MAKING,
    Place,
    begun_in,
    files_of,
    mark_not_done,
    name_of,
    put_aside,
    read_stats,
    take_over,
    write_shard,
)
from laion_assets.funnel import LISTED, StageCounts, total
from laion_assets.options import operational_fields
from laion_assets.progress import Progress
from laion_assets.removals.active import Lists
from laion_assets.removals.entries import Entries
from laion_assets.schemas import OUTCOME

logger = logging.getLogger(__name__)

NETWORK: Final = frozenset({"dns", "connect", "timeout", "host_down"})
"""Reasons that a machine without network gives."""

_WISHES: Final = frozenset({"opt_out", "robots", "removed", "blocked", "private_address"})
"""Reasons for which an image that was there before is not kept either."""

_OUTCOME_RULES: Final = 1
"""Counts the versions of what decides an outcome beside the options."""

_OWN_COLUMNS: Final = {"caption", *OUTCOME.names}
_ASIDE: Final = ".earlier"
_OPEN_SHARDS: Final = 3
_ROWS_LOOKED_UP: Final = 256
_HOSTS_TOLD: Final = 20
_HOSTS_WITHOUT_NETWORK: Final = 3
"""Fewer hosts that fail, and nothing else to go by, may be just those hosts."""

_DECIDED_HERE: Final = frozenset({"url_scheme", "private_address"}) | LISTED
"""Reasons that say nothing of the network."""


class NoNetworkError(RuntimeError):
    """No host has answered in the whole run."""


@dataclass
class Downloaded:
    """A segment's counts, and what people ask about the run beside them."""

    counts: StageCounts
    asked_for: int = 0
    """Rows whose URL was asked for, by this run or the ones it went on with."""
    reused: int = 0
    changed: int = 0
    """Rows whose bytes were not those recorded before, taken or not."""
    bytes: int = 0
    """Bodies received."""
    seconds: float = 0.0
    """Of this run."""
    fetched_now: int = 0
    bytes_now: int = 0
    hosts: dict[str, dict[str, int]] = field(default_factory=dict)
    """The hosts that failed most often, with their reasons."""
    without_network: list[str] = field(default_factory=list)
    """Shards of which every download failed for a network reason, after all retries."""


def download_segment(
    pairs: Path,
    out: Path,
    options: DownloadOptions,
    *,
    removals: Entries,
    blocklists: Entries,
    before: Path | None = None,
    again: bool = False,
    resolve: Resolve = system_resolve,
) -> Downloaded:
    """Download the images of ``pairs`` into ``out``, going on where a killed run stopped.

    ``pairs``: a folder of ``part-*.parquet`` or one parquet file, with columns ``url`` and
    ``text``; every other column is carried along. ``out``: an own folder, given to one process at
    a time. ``before``: the shards of an earlier version; of what they or a version in ``out``
    hold, ``options.refetch`` says what is asked for again. Shards in ``out`` that are done with
    these rows and options stay as they are, unless the lists now name other rows of theirs, or
    ``again`` opens them to that question.

    A URL that a list names, by itself or by its host, is not asked for, nor is one that a redirect
    leads to; an image that a list names by its hash is not kept.

    Raises ``ValueError`` for pairs without those columns, :class:`NoNetworkError`, and ``OSError``
    where the disk fails. Not for a thread that already runs an event loop.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(f"{MAKING}*"):
        shutil.rmtree(leftover)
    aside = out / _ASIDE
    files = sorted(pairs.glob("part-*.parquet")) if pairs.is_dir() else [pairs]
    rules = _Rules(options, removals, blocklists)
    digests = [rules.digest(rows) for rows in _shards(files, options.samples_per_shard)]

    finished: dict[int, dict[str, Any]] = {}
    for shard in sorted({*range(len(digests)), *begun_in(out)}):
        stats = read_stats(out, shard) if shard < len(digests) else None
        digest = digests[shard] if shard < len(digests) else None
        stays = stats is not None and rules.holds(out, shard, stats, digest)
        if stats and stays and not (again and rules.asks_again(stats)):
            finished[shard] = stats
            continue
        put_aside(out, shard, aside)
        stats = read_stats(before, shard) if before and digest else None
        stays = bool(before and stats and rules.holds(before, shard, stats, digest))
        if before and stats and stays and not rules.asks_again(stats):
            taken = {"reused": stats["count"], "asked_for": 0, "changed": 0, "bytes": 0}
            finished[shard] = {**stats, **taken}
            take_over(before, shard, out, finished[shard])

    rows = sum(pq.read_metadata(file).num_rows for file in files)
    resumed = sum(stats["count"] for stats in finished.values())
    made: dict[int, dict[str, Any]] = {}
    if len(finished) < len(digests):
        if not options.contact and not options.connect_to:
            logger.warning("[download] contact is empty: nobody can tell you that you disturb them")
        progress = Progress("image_shards", "images", rows, logger, resumed=resumed)
        todo = (
            (shard, table)
            for shard, table in enumerate(_shards(files, options.samples_per_shard))
            if shard not in finished
        )
        fetcher = Fetcher(options, resolve=resolve, listed=rules.listed)
        with (
            tempfile.TemporaryDirectory(dir=out, prefix=MAKING) as scratch,
            Earlier([folder for folder in (aside, before) if folder is not None]) as earlier,
            Decoders(options, Path(scratch)) as decoders,
        ):
            work = _Work(out, Path(scratch), rules, digests, earlier, decoders, fetcher, progress)
            made = asyncio.run(work.run(todo))
        if fetcher.answers == 0 and len(work.new_hosts) >= _HOSTS_WITHOUT_NETWORK:
            for shard in made:
                mark_not_done(out, shard)
            reasons = total("images", [StageCounts.from_json(s["counts"]) for s in made.values()])
            raise NoNetworkError(
                f"no host has answered ({_told(reasons.rejects)}): is this machine's network up? "
                "What is there is kept, and the next run asks again"
            )
    if aside.exists():
        shutil.rmtree(aside)
    result = _sum_up([(finished | made)[shard] for shard in range(len(digests))])
    result.seconds = time.monotonic() - started
    result.fetched_now = sum(stats["asked_for"] for stats in made.values())
    result.bytes_now = sum(stats["bytes"] for stats in made.values())
    return result


class _Rules:
    """What decides a row's outcome beside the row and the web."""

    def __init__(self, options: DownloadOptions, removals: Entries, blocklists: Entries) -> None:
        self.options = options
        self.removals = removals
        self.blocklists = blocklists
        fields = set(DownloadOptions.model_fields) - operational_fields(DownloadOptions)
        made_with = [_OUTCOME_RULES, options.model_dump(mode="json", include=fields)]
        self.options_digest = _sha256(made_with)

    def digest(self, rows: pa.Table) -> str:
        """Of what decides a shard, the lists apart: of these only what names its rows counts."""
        return _sha256([self.options_digest, rows.to_pylist()])

    def holds(self, folder: Path, shard: int, stats: dict[str, Any], digest: str | None) -> bool:
        """Whether a finished shard was made of these rows, with these options, and exactly those
        rows of it are refused that the lists now name."""
        if stats["input_digest"] != digest:
            return False
        lists = Lists(self.removals, self.blocklists)
        if not lists:
            return not LISTED & set(stats["status_dict"])
        parquet = files_of(folder, shard)[1]
        try:
            named, refused = named_rows(parquet, lists, samples=False)
        except UNREADABLE:
            return False  # it is told of where its rows are looked up
        return {found.row for found in named} == refused

    def listed(self, url: str) -> str | None:
        if self.removals.matches_url(url):
            return "removed"
        return "blocked" if self.blocklists.matches_url(url) else None

    def asks_again(self, stats: dict[str, Any]) -> bool:
        """Whether a shard with these statistics may hold rows to ask for again."""
        if self.options.refetch == "all":
            return True
        reasons = set(stats["status_dict"])
        passing = self.options.refetch == "passing" and bool(reasons & PASSING)
        return passing or (self.options.take_changed and "changed" in reasons)

    def still_holds(self, known: Known) -> bool:
        """Whether the outcome was made as it would be now, lists apart."""
        return known.options == self.options_digest

    def settled(self, url: str, known: Known | None) -> Outcome | None:
        """The outcome of a row whose URL need not be asked for."""
        refused = self._refused_by_list(url, known)
        if refused is not None:
            return refused
        if known is None or not self.still_holds(known) or self.options.refetch == "all":
            return None
        reason = known.outcome.reason
        if reason in LISTED:
            return None  # no list names it any more
        if reason == "changed" and self.options.take_changed:
            return None
        given_up = known.history.failures >= self.options.give_up_after
        if reason in PASSING and self.options.refetch == "passing" and not given_up:
            return None
        return known.outcome

    def _refused_by_list(self, url: str, known: Known | None) -> Outcome | None:
        redirects = (known.outcome.redirects if known else None) or []
        for step in (url, *redirects):
            reason = self.listed(as_asked(step))
            if reason is not None:
                refused = FetchRefused(reason, ON_A_LIST)
                # Kept, so that the row says by itself what it was refused for.
                return Outcome(
                    FAILED_TO_DOWNLOAD, str(refused), reason=reason, redirects=redirects or None
                )
        if known is not None and known.outcome.sha256 and known.outcome.md5:
            try:
                sums = Checksums(known.outcome.sha256, known.outcome.md5)
                refuse_listed(sums, self.removals, self.blocklists)
            except ImageRefused as refusal:
                return _unfit(refusal, sums, redirects)
        return None


@dataclass
class _Row:
    outcome: Outcome
    encoded: bytes | None
    history: History
    bytes: int = 0
    asked_for: bool = True
    changed: bool = False


@dataclass(frozen=True)
class _ToAsk:
    """A URL to ask for, once for all rows that have it."""

    url: str
    rows: list[int]
    known: Known | None

    @property
    def history(self) -> History:
        return self.known.history if self.known else History()

    @property
    def is_new(self) -> bool:
        """Whether a failure would be the first: of one that failed before it says nothing."""
        return (
            self.known is None or self.known.outcome.status == SUCCESS or not self.history.failures
        )


class _Gathered:
    """A shard's outcomes in the making; its images go to a file at once, not into memory."""

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
class _Work:
    out: Path
    scratch: Path
    rules: _Rules
    digests: Sequence[str]
    earlier: Earlier
    decoders: Decoders
    fetcher: Fetcher
    progress: Progress

    async def run(self, todo: Iterator[tuple[int, pa.Table]]) -> dict[int, dict[str, Any]]:
        """Shard -> its statistics. The first error of a shard ends all."""
        self._moved = asyncio.Event()
        self.new_hosts: set[str] = set()
        made: dict[int, dict[str, Any]] = {}
        at_work: dict[asyncio.Task[dict[str, Any]], int] = {}
        async with self.fetcher:
            try:
                for shard, table in todo:
                    task = asyncio.create_task(self._shard(shard, table))
                    task.add_done_callback(lambda _: self._moved.set())
                    at_work[task] = shard
                    # The new one must have begun before its need of slots can be seen.
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
        self, at_work: dict[asyncio.Task[dict[str, Any]], int], made: dict[int, dict[str, Any]]
    ) -> None:
        """Wait until a row or a shard is done."""
        await self._moved.wait()
        self._moved.clear()
        for task in [task for task in at_work if task.done()]:
            made[at_work.pop(task)] = task.result()

    async def _shard(self, shard: int, table: pa.Table) -> dict[str, Any]:
        started = time.time()
        urls = [url or "" for url in table["url"].to_pylist()]
        gathered = _Gathered(self.scratch / name_of(shard), len(urls))
        try:
            to_ask = await self._settle(gathered, urls)
            await self._ask(gathered, to_ask)
            no_network = await self._ask_while_without_network(shard, gathered, to_ask)
            gathered.close()
            stats = self._stats(shard, gathered, urls, started)
            if no_network:
                stats["input_digest"] = None  # not done: the next run tries again
                for asked in to_ask:  # and this one does not count
                    for i in asked.rows:
                        gathered.histories[i] = asked.history
            await self.decoders.run(
                write_shard,
                self.out,
                shard,
                table,
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

    async def _settle(self, gathered: _Gathered, urls: Sequence[str]) -> list[_ToAsk]:
        """Take over what need not be asked for; the URLs that must."""
        to_ask: dict[str, _ToAsk] = {}
        for start in range(0, len(urls), _ROWS_LOOKED_UP):
            looked_up = urls[start : start + _ROWS_LOOKED_UP]
            known = (
                self.earlier.look_up(looked_up) if len(self.earlier) else [None] * len(looked_up)
            )
            for i, (url, of_url) in enumerate(zip(looked_up, known, strict=True), start):
                outcome = self.rules.settled(url, of_url)
                if outcome is None:
                    # The image stays where it is, not in memory.
                    slim = replace(of_url, encoded=None) if of_url else None
                    to_ask.setdefault(url, _ToAsk(url, [], slim)).rows.append(i)
                    continue
                encoded = of_url.encoded if of_url and outcome.status == SUCCESS else None
                history = of_url.history if of_url else History()
                gathered.add(i, _Row(outcome, encoded, history, asked_for=False))
                self.progress.advance()
            await asyncio.sleep(0)
        return list(to_ask.values())

    async def _ask(self, gathered: _Gathered, to_ask: Sequence[_ToAsk]) -> None:
        async def one(asked: _ToAsk) -> None:
            row = await self._row(asked)
            for i in asked.rows:
                gathered.add(i, row)
                row = replace(row, bytes=0)  # they came once
            self.progress.advance(len(asked.rows))
            self._moved.set()

        tasks = [asyncio.create_task(one(asked)) for asked in to_ask]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _row(self, asked: _ToAsk) -> _Row:
        history = asked.history.tried()
        body = b""
        try:
            async with self.fetcher.fetching(asked.url) as fetched:
                body, redirects = fetched.body, list(fetched.redirects) or None
                sums = Checksums.of(body)
                history = history.answered()
                if history.sha256 not in (None, sums.sha256):
                    history = history.differed(sums.sha256)
                try:
                    # First, because bytes that have changed may be listed, too.
                    refuse_listed(sums, self.rules.removals, self.rules.blocklists)
                    differs = history.sha256 not in (None, sums.sha256)
                    if differs and not self.rules.options.take_changed:
                        raise _changed(history, sums)
                    return await self._examine(asked, body, sums, redirects, history)
                except ImageRefused as refused:
                    if refused.reason in PASSING:
                        history = history.failed()
                    outcome = _unfit(refused, sums, redirects)
                    return self._kept(asked, outcome, history, len(body))
        except FetchRefused as refused:
            history = history.failed() if refused.asked else asked.history
            hops = list(refused.redirects) if refused.reason in LISTED else []
            outcome = Outcome(
                FAILED_TO_DOWNLOAD, str(refused), reason=refused.reason, redirects=hops or None
            )
            return self._kept(asked, outcome, history, len(body))

    def _kept(self, asked: _ToAsk, outcome: Outcome, history: History, received: int) -> _Row:
        """The image that is there already, if what came instead is no reason to give it up."""
        row = _Row(outcome, None, history, received, changed=outcome.reason == "changed")
        known = None if outcome.reason in _WISHES else self._image_of(asked)
        return replace(row, outcome=known.outcome, encoded=known.encoded) if known else row

    def _image_of(self, asked: _ToAsk) -> Known | None:
        """The image that is there already, if it is as it would be made now."""
        known = asked.known
        if known is None or known.outcome.status != SUCCESS or not self.rules.still_holds(known):
            return None
        return self.earlier.look_up([asked.url])[0]

    async def _examine(
        self,
        asked: _ToAsk,
        body: bytes,
        sums: Checksums,
        redirects: list[str] | None,
        history: History,
    ) -> _Row:
        """Raises :class:`ImageRefused`."""
        changed = history.changed_sha256 == sums.sha256 != history.sha256
        known = self._image_of(asked)
        if known and known.outcome.sha256 == sums.sha256:
            outcome, encoded = replace(known.outcome, redirects=redirects), known.encoded
        else:
            refuse_unseen(body, self.rules.options.min_bytes)
            image = await self.decoders.make(body)
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

    async def _ask_while_without_network(
        self, shard: int, gathered: _Gathered, to_ask: Sequence[_ToAsk]
    ) -> bool:
        """Ask again, with longer and longer waits, while everything fails for the network.

        Whether it still did at the end.
        """
        options = self.rules.options
        waits = [options.network_wait_s * 2**i for i in range(options.network_retries)]
        for wait in [*waits, None]:
            failed = self._without_network(gathered.outcomes, to_ask)
            if failed is None:
                return False
            logger.warning(
                f"shard {name_of(shard)}: {failed.total():,} downloads failed, all for "
                f"network reasons ({_told(failed)}); "
                + (
                    f"trying again in {wait:g} s"
                    if wait is not None
                    else "the next run tries again"
                )
            )
            if wait is not None:
                await asyncio.sleep(wait)
                self.fetcher.forget_failures()
                self.progress.done -= sum(len(asked.rows) for asked in to_ask)
                await self._ask(gathered, to_ask)
        return True

    def _without_network(
        self, outcomes: Sequence[Outcome], to_ask: Sequence[_ToAsk]
    ) -> Counter[str] | None:
        """The reasons, if all that was asked for failed as it does on a machine without network."""
        reasons = Counter(outcomes[i].reason or "" for asked in to_ask for i in asked.rows)
        for reason in _DECIDED_HERE:
            reasons.pop(reason, None)
        new = {_host(asked.url) for asked in to_ask if asked.is_new}
        if len(self.new_hosts) < _HOSTS_WITHOUT_NETWORK:
            self.new_hosts |= new
        if not reasons or not reasons.keys() <= NETWORK:
            return None
        return reasons if len(new) >= _HOSTS_WITHOUT_NETWORK else None

    def _stats(
        self,
        shard: int,
        gathered: _Gathered,
        urls: Sequence[str],
        started: float,
    ) -> dict[str, Any]:
        outcomes = gathered.outcomes
        statuses = Counter(outcome.status for outcome in outcomes)
        ended = time.time()
        return {
            "count": len(outcomes),
            "successes": statuses[SUCCESS],
            "failed_to_download": statuses[FAILED_TO_DOWNLOAD],
            "failed_to_resize": statuses[FAILED_TO_RESIZE],
            "duration": ended - started,
            "start_time": started,
            "end_time": ended,
            "status_dict": dict(Counter(outcome.reason or SUCCESS for outcome in outcomes)),
            "exif_unreadable": sum(
                outcome.status == SUCCESS and outcome.exif is None for outcome in outcomes
            ),
            "asked_for": sum(gathered.asked_for),
            "reused": len(outcomes) - sum(gathered.asked_for),
            "changed": sum(gathered.changed),
            "bytes": sum(gathered.bytes),
            "failing_hosts": _failing_hosts(urls, outcomes),
            "options_digest": self.rules.options_digest,
            "input_digest": self.digests[shard],
            "counts": _count(urls, outcomes).to_json(),
        }


def _unfit(refused: ImageRefused, sums: Checksums, redirects: list[str] | None) -> Outcome:
    return Outcome(
        FAILED_TO_RESIZE,
        str(refused),
        sha256=sums.sha256,
        md5=sums.md5,
        reason=refused.reason,
        redirects=redirects or None,
    )


def _changed(history: History, sums: Checksums) -> ImageRefused:
    return ImageRefused("changed", f"SHA-256 {sums.sha256}, recorded {history.sha256}")


def _count(urls: Sequence[str], outcomes: Sequence[Outcome]) -> StageCounts:
    counts = StageCounts("images")
    for url, outcome in zip(urls, outcomes, strict=True):
        if outcome.reason is None:
            counts.keep()
        else:
            counts.reject(outcome.reason, url)
    return counts


def _failing_hosts(urls: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    hosts: dict[str, Counter[str]] = {}
    for url, outcome in zip(urls, outcomes, strict=True):
        if outcome.reason is not None and outcome.reason not in LISTED:
            hosts.setdefault(_host(url), Counter())[outcome.reason] += 1
    return _most_failing(hosts)


def _host(url: str) -> str:
    """Empty for what is no URL."""
    with suppress(ValueError):
        return urlsplit(url).hostname or ""
    return ""


def _most_failing(hosts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    most = sorted(hosts, key=lambda host: (-hosts[host].total(), host))[:_HOSTS_TOLD]
    return {host: dict(hosts[host]) for host in most}


def _sum_up(stats: Sequence[dict[str, Any]]) -> Downloaded:
    hosts: dict[str, Counter[str]] = {}
    for of_shard in stats:
        for host, reasons in of_shard["failing_hosts"].items():
            hosts.setdefault(host, Counter()).update(reasons)
    return Downloaded(
        total("images", [StageCounts.from_json(of_shard["counts"]) for of_shard in stats]),
        asked_for=sum(of_shard["asked_for"] for of_shard in stats),
        reused=sum(of_shard["reused"] for of_shard in stats),
        changed=sum(of_shard["changed"] for of_shard in stats),
        bytes=sum(of_shard["bytes"] for of_shard in stats),
        hosts=_most_failing(hosts),
        without_network=[
            name_of(shard) for shard, one in enumerate(stats) if one["input_digest"] is None
        ],
    )


def _told(rejects: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n}" for reason, n in sorted(rejects.items()))


def _shards(files: Sequence[Path], size: int) -> Iterator[pa.Table]:
    """The rows of all files in order, ``size`` at a time, the last perhaps fewer."""
    waiting: list[pa.RecordBatch] = []
    n = 0
    for file in files:
        # Not `read_table`: it would take the lake's hive folders for columns.
        parquet = pq.ParquetFile(file)
        names = set(parquet.schema_arrow.names)
        missing = {"url", "text"} - names
        if missing:
            raise ValueError(f"{file} has no column {', '.join(sorted(missing))}")
        taken = names & _OWN_COLUMNS
        if taken:
            raise ValueError(
                f"{file} has columns that a shard has of its own: {', '.join(sorted(taken))}; "
                "rename them or leave them out"
            )
        for batch in parquet.iter_batches(batch_size=size):
            while n + len(batch) >= size:
                waiting.append(batch[: size - n])
                yield pa.Table.from_batches(waiting)
                batch, waiting, n = batch[size - n :], [], 0
            if len(batch):
                waiting.append(batch)
                n += len(batch)
    if waiting:
        yield pa.Table.from_batches(waiting)


def _sha256(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_json(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
