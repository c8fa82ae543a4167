"""Download of a segment's pairs into webdataset shards, as img2dataset writes them.

One process fetches, or several, asynchronously and for several shards at a time, so that a shard's
slowest hosts do not delay the next shard. The processes of :mod:`.decoders` make the images and
write the shards. What does not belong here: the lake's partitions.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from laion_assets.download.addresses import Resolve, system_resolve
from laion_assets.download.decoders import ImageMakers
from laion_assets.download.dropping import drop_rows
from laion_assets.download.fetch import Fetcher
from laion_assets.download.fetch_pool import FetchPool
from laion_assets.download.listed_rows import LOOKED_AT
from laion_assets.download.numbering import KeysGiven, Numbering, number_pairs
from laion_assets.download.options import DownloadOptions
from laion_assets.download.previous import UNREADABLE, PreviousShards
from laion_assets.download.rows import RowMaker, Rows
from laion_assets.download.rules import Rules
from laion_assets.download.shard_files import (
    begun_in,
    files_of,
    read_ledger,
    read_shard,
    rows_in_turn,
    shards_of,
)
from laion_assets.download.shard_stats import ShardStats
from laion_assets.download.shard_work import HOSTS_WITHOUT_NETWORK, ShardWork, in_words
from laion_assets.download.shards import (
    MAKING,
    has_rotted,
    mark_not_done,
    put_aside,
    read_stats,
    take_over,
)
from laion_assets.download.summary import Downloaded, sum_up
from laion_assets.errors import TransientError
from laion_assets.funnel import total
from laion_assets.layout import (
    IMAGE_SHARDS,
    PARTITIONS,
    UNIQUE_PAIRS,
)
from laion_assets.removals.active import Lists
from laion_assets.removals.entries import Entries
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

_ASIDE: Final = ".earlier"
"""Folder, within ``out``, of its finished shards that are made again."""
_OPEN_SHARDS: Final = 3


class NoNetworkError(TransientError, RuntimeError):
    """No host has answered in the whole run."""


def download_segment(
    pairs: Path,
    out: Path,
    options: DownloadOptions,
    *,
    removals: Entries,
    blocklists: Entries,
    before: Path | None = None,
    given: KeysGiven | None = None,
    again: bool = False,
    resolve: Resolve = system_resolve,
) -> Downloaded:
    """Download the images of ``pairs`` into ``out``; resume a killed run.

    ``pairs``: a folder of ``part-*.parquet`` or one parquet file, with columns ``url`` and
    ``text``; every other column is carried along. ``out``: an own folder, given to one process at
    a time. ``before``: a folder of the shards of an earlier version, whose pairs keep their shards
    and keys; ``given``: the keys that it recorded. ``options.refetch`` says which of their rows,
    and of the shards put aside in ``out``, are refetched, unless pairs have only left: then only
    those are whose image its tar has lost. Shards in ``out`` that were made of these rows and
    options stay as they are, unless the lists now name other rows of theirs, or ``again`` opens
    them to refetching. ``options``: picklable, for the decoders' processes; if several processes
    fetch, the lists and ``resolve`` must be, too.

    A URL that a list names, by itself or by its host, is not fetched, nor is one that a redirect
    leads to. An image that a list names by its hash is not kept.

    Raises ``ValueError`` for pairs without those columns, :class:`NoNetworkError`,
    :class:`.fetch_pool.FetchProcessError`, and ``OSError`` if the disk fails. Must not be called in
    a thread that already runs an event loop.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(f"{MAKING}*"):
        shutil.rmtree(leftover)
    files = PARTITIONS[UNIQUE_PAIRS].rows.paths(pairs) if pairs.is_dir() else [pairs]
    numbering = number_pairs(files, options.samples_per_shard, before, given)
    rules = Rules(options, Lists(removals, blocklists))
    if before is not None and only_takes_out(before, numbering, rules):
        rules = rules.without_refetching()
    digests = _digests(numbering, rules, [out] if before is None else [out, before])

    finished = plan_shards(out, before, rules, digests, again=again)
    made: dict[int, ShardStats] = {}
    if before is not None and len(finished) < len(numbering.next_row):
        finished |= _drop_rows(before, out, numbering, rules, digests, finished)
    if len(finished) < len(numbering.next_row):
        made = _make_missing(out, before, numbering, rules, finished, resolve)
    if (out / _ASIDE).exists():
        shutil.rmtree(out / _ASIDE)
    shards = dict(sorted((finished | made).items()))
    return sum_up(shards, made.values(), time.monotonic() - started, numbering.given)


def _digests(numbering: Numbering, rules: Rules, folders: Sequence[Path]) -> dict[int, str]:
    """The digest of each shard that one of the folders has, which may be finished then.

    Whoever writes a shard computes its digest; for all at once that takes minutes.
    """
    begun = {shard for folder in folders for shard in begun_in(shards_of(folder))}
    if begun.isdisjoint(numbering.next_row):
        return {}
    return {pairs.shard: rules.digest(pairs) for pairs in numbering if pairs.shard in begun}


def only_takes_out(before: Path, numbering: Numbering, rules: Rules) -> bool:
    """Whether all that differs from the version before is that pairs have left, or that lists name
    more of them. Then nothing is fetched: a removal asks nobody, and touches no other shard."""
    if numbering.new:
        return False
    more = False
    try:
        for table in rows_in_turn(before, LOOKED_AT) if rules.lists else ():
            named, refused = rules.listed_rows(table)
            if refused - named:
                return False
            more |= named > refused
    except UNREADABLE:
        return False  # what is damaged is fetched again
    return more or numbering.left > 0


def plan_shards(
    out: Path, before: Path | None, rules: Rules, digests: Mapping[int, str], *, again: bool
) -> dict[int, ShardStats]:
    """Decide which shards are made; return the others, which are finished, with their statistics.

    A finished shard in ``out`` stays if it is current, and its tar has the bytes that were written:
    an earlier run did that, so all are read. Any other is put aside, and replaced by the one of
    ``before`` if that is current and has nothing to refetch.
    """
    finished: dict[int, ShardStats] = {}
    for shard in sorted({*digests, *begun_in(out)}):
        digest = digests.get(shard)
        stats = read_stats(out, shard) if digest else None
        stays = stats is not None and rules.is_current(out, shard, stats, digest)
        if stats and stays and not (again and rules.may_refetch(stats)):
            tar = files_of(out, shard)[0]
            if not has_rotted(tar, stats):
                finished[shard] = stats
                continue
            logger.warning(f"{tar} has changed since it was written: the shard is made again")
            # None of its images is to be taken over. Another version may have the same file.
            tar.unlink()
            tar.touch()
        put_aside(out, shard, out / _ASIDE)
        taken = _take_from(before, shard, rules, digest, out) if before and digest else None
        if taken:
            finished[shard] = taken
    return finished


def _take_from(before: Path, shard: int, rules: Rules, digest: str, out: Path) -> ShardStats | None:
    """Take over a shard that is current and has nothing to refetch; None for any other."""
    tar = files_of(before, shard)[0]
    try:
        stats = read_stats(before, shard)
        current = stats is not None and rules.is_current(before, shard, stats, digest)
        if stats is None or not current or rules.may_refetch(stats):
            return None
        table, ledger = read_shard(tar), read_ledger(tar)
    except UNREADABLE:
        return None  # the warning comes when its rows are looked up
    return take_over(tar, table, ledger, out, stats)


def _drop_rows(
    before: Path,
    out: Path,
    numbering: Numbering,
    rules: Rules,
    digests: Mapping[int, str],
    finished: Mapping[int, ShardStats],
) -> dict[int, ShardStats]:
    """Make those of the shards that only lack rows of what they were before."""
    dropped: dict[int, ShardStats] = {}
    for pairs in numbering:
        if pairs.shard in digests and pairs.shard not in finished:
            try:
                stats = drop_rows(before, out, pairs, rules, digests[pairs.shard])
            except (*UNREADABLE, tarfile.TarError):
                continue  # the warning comes when its rows are looked up
            if stats is not None:
                dropped[pairs.shard] = stats
    return dropped


def _make_missing(
    out: Path,
    before: Path | None,
    numbering: Numbering,
    rules: Rules,
    finished: Mapping[int, ShardStats],
    resolve: Resolve,
) -> dict[int, ShardStats]:
    """Make all shards that are not finished; return their statistics.

    Raises :class:`NoNetworkError`.
    """
    options = rules.options
    if not options.contact and not options.connect_to:
        logger.warning(
            "[download] contact is empty: people whom the download disturbs cannot write to you"
        )
    resumed = sum(stats.count for stats in finished.values())
    progress = Progress(IMAGE_SHARDS, "images", len(numbering.rows), logger, resumed=resumed)
    todo = (pairs for pairs in numbering if pairs.shard not in finished)
    known = [folder for folder in (out / _ASIDE, before) if folder is not None]
    with (
        tempfile.TemporaryDirectory(dir=out, prefix=MAKING) as scratch,
        PreviousShards(known) as previous,
        ImageMakers(_in_first_process(options), Path(scratch)) as makers,
    ):
        rows: Rows
        if options.fetch_processes == 1:
            fetcher = Fetcher(options, resolve=resolve, listed=rules.listed)
            rows = RowMaker(rules, fetcher, makers)
        else:
            rows = FetchPool(rules, Path(scratch), resolve)
        open_shards = _OPEN_SHARDS + options.fetch_processes - 1
        work = ShardWork(out, Path(scratch), rules, previous, makers, rows, progress, open_shards)
        made = asyncio.run(work.run(todo))
    if rows.answers == 0 and len(work.new_hosts) >= HOSTS_WITHOUT_NETWORK:
        for shard in made:
            mark_not_done(out, shard)
        reasons = total("images", [stats.counts for stats in made.values()]).rejects
        raise NoNetworkError(
            f"no host has answered ({in_words(reasons)}): check this machine's network. "
            "Finished shards are kept, and the next run retries the others"
        )
    return made


def _in_first_process(options: DownloadOptions) -> DownloadOptions:
    """The options of the processes beside the first one: if others fetch, they only write shards,
    one for each of those."""
    if options.fetch_processes == 1:
        return options
    return options.model_copy(update={"resize_processes": options.fetch_processes})
