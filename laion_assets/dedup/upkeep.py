"""Keeps a ledger in line with the published partitions, and its sorted runs few.

What does not belong here: how a segment claims.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laion_assets.dedup import runs
from laion_assets.dedup.runs import Columns, SortedRun, SortedRunWriter
from laion_assets.dedup.state import (
    STATE,
    EarlierRun,
    LedgerError,
    Owner,
    State,
    damaged,
    load,
    open_runs,
    save,
    telling,
)
from laion_assets.files import LockedError, fsync_directory, locked
from laion_assets.layout import EVERY_HIVE, PARTITIONS, UNIQUE_PAIRS, SegmentKey
from laion_assets.pairs.uids import UidBuckets
from laion_assets.tables import rows_in

logger = logging.getLogger(__name__)

CLAIMS: Final = "_claims.json"
"""File in a partition with the digest and the number of its claims."""

FAN: Final = 8
"""Sorted runs of one level that are merged into one of the next."""

_CLAIMS_EARLIER: Final = "claims.json"
_MERGING: Final = ".merging"
"""Folder of a merge in progress, and lock of the process that merges."""
_RUNS: Final = "run-*"
_EVERY_CRAWL: Final = EVERY_HIVE.partition("/")[0]


class Held(NamedTuple):
    """The claims of a published partition."""

    claims: int
    pieces: Iterable[tuple[NDArray[Any], NDArray[Any]]]
    """Their first and second halves, (n,) uint64 each; through all pieces sorted by the first."""


HeldBy = Callable[[Path, Path], Held]
"""Reads a partition's folder; the other path is free for files of its own."""


def uids_held(folder: Path, scratch: Path) -> Held:
    """What a partition of `unique_pairs` holds."""
    parts = PARTITIONS[UNIQUE_PAIRS].rows.paths(folder)
    rows = rows_in(*parts)

    def pieces() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        uids = buckets(parts, rows, scratch)
        for bucket in uids:
            yield bucket.high, bucket.low
        uids.remove()

    return Held(rows, pieces())


@contextmanager
def opened(ledger: Path, partitions: Path, held_by: HeldBy = uids_held) -> Iterator[State]:
    """Lock the ledger and bring it in line with the partitions.

    ``held_by``: reads what a partition holds, from which a lost ledger is rebuilt. Raises
    :class:`LedgerError` if it is damaged.
    """
    with locked(ledger / ".lock", lambda: logger.info(f"waiting for another writer of {ledger}")):
        exists = (ledger / STATE).exists()
        state = load(ledger)
        before = json.dumps(state.to_json())
        if state.earlier:
            _rewrite_earlier(ledger, state)
        _settle(state, partitions)
        if not exists:
            _delete_unlisted(ledger, state)
            with telling(ledger):
                _rebuild(ledger, state, partitions, held_by)
        _check(ledger, state)
        if not exists or json.dumps(state.to_json()) != before:
            fsync_directory(ledger)
            save(ledger, state)
        _delete_unlisted(ledger, state)
        since = time.monotonic()
        yield state
        logger.info(f"the ledger was locked for {time.monotonic() - since:.1f} s")


def _settle(state: State, partitions: Path) -> None:
    """Decide what a killed run left pending, and release the claims of deleted partitions."""
    pending = state.pending
    if pending is not None:
        if published_digest(partitions / SegmentKey.parse(pending.key).hive) == pending.digest:
            logger.info(
                f"the claims of {pending.key} were published before its run ended: they count"
            )
            state.confirm(pending)
        else:
            logger.info(f"the claims of {pending.key} were never published: they are dropped")
            state.pending = None
    # Ten thousand keys take a fifth of a second to check, and others are waiting.
    published = {
        f"{crawl.name.removeprefix('crawl=')}|{segment.name.removeprefix('segment=')}"
        for crawl in partitions.glob(_EVERY_CRAWL)
        for segment in os.scandir(crawl)
        if segment.is_dir()
    }
    for key in sorted(state.owners.keys() - published):
        logger.info(f"{key} was deleted: its {state.owners[key].rows:,} claims are released")
        del state.owners[key]


def _folders(partitions: Path) -> list[Path]:
    return sorted(path for path in partitions.glob(EVERY_HIVE) if path.is_dir())


def published_digest(partition: Path) -> str | None:
    """The digest of the claims of a partition, by its folder; None if it has claimed nothing."""
    for path in (partition / CLAIMS, partition / _CLAIMS_EARLIER):
        if path.exists():
            digest: str = json.loads(path.read_text(encoding="utf-8"))["digest"]
            return digest
    return None


def _delete_unlisted(ledger: Path, state: State) -> None:
    """Delete the files of a killed writer and of merged sorted runs."""
    listed = {run.name for run in state.runs}
    if state.pending:
        listed.add(state.pending.run.name)
    for path in ledger.glob(_RUNS):
        if path.stem not in listed:
            path.unlink()


def _check(ledger: Path, state: State) -> None:
    try:
        with open_runs(ledger, state.runs):
            pass
    except (OSError, ValueError) as error:
        raise LedgerError(damaged(ledger, str(error))) from error


def _rebuild(ledger: Path, state: State, partitions: Path, held_by: HeldBy) -> None:
    """Claim for every segment what its published partition holds."""
    for folder in _folders(partitions):
        key = SegmentKey.of_folder(folder)
        logger.info(f"rebuilding the ledger from {key}")
        held = held_by(folder, ledger / ".uids")
        number = state.new_number()
        with SortedRunWriter(ledger, number, 0, held.claims) as writer:
            for high, low in held.pieces:
                writer.write(Columns(high, low, np.full(len(high), number, dtype=np.uint32)))
        state.runs.append(writer.run())
        state.owners[str(key)] = Owner(number, held.claims)
        # Saved only with all partitions: half a ledger would be taken for a whole one.
        while due := _due(state):
            run = runs.merge(ledger, due, ledger, state.counts(), runs.ROWS_AT_ONCE)
            state.replace(due, run)
            _delete_unlisted(ledger, state)


def buckets(parts: Sequence[Path], rows: int, scratch: Path) -> UidBuckets:
    """The uids of parquet files with so many rows, to be read in their order."""
    uids = UidBuckets(scratch, rows, runs.ROWS_AT_ONCE)
    uids.add_parts(parts)
    return uids


def merge_due(ledger: Path, *, keep_void: bool = True) -> None:
    """Merge until no level has :data:`FAN` sorted runs; leave it to another process if one does.

    Claims are made and looked up meanwhile: only the exchange of the runs takes the ledger's lock.
    ``keep_void``: whether void claims may stay until their run is merged. If not, all runs are
    merged into one as soon as there are any.
    """
    with suppress(LockedError), locked(ledger / f"{_MERGING}.lock", lambda: None, -1.0):
        state = load(ledger)
        if not keep_void and _has_void(state):
            _merge(ledger, state, list(state.runs))
        while due := _due(state := load(ledger)):
            if not _merge(ledger, state, due):
                break
        shutil.rmtree(ledger / _MERGING, ignore_errors=True)


def _merge(ledger: Path, state: State, due: Sequence[SortedRun]) -> bool:
    """Merge sorted runs; return whether the ledger has the merged one, or was rebuilt meanwhile."""
    folder = ledger / _MERGING
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = sum(run.rows for run in due)
    logger.info(f"merging {len(due)} sorted runs of {rows:,} claims")
    with telling(ledger):
        run = runs.merge(ledger, due, folder, state.counts(), runs.ROWS_AT_ONCE)
    with locked(ledger / ".lock", lambda: None):
        now = load(ledger)
        if now.id != state.id:
            return False
        for path in run.paths(folder):
            path.rename(ledger / path.name)
        fsync_directory(ledger)
        now.replace(due, run)
        save(ledger, now)
        _delete_unlisted(ledger, now)
    return True


def _has_void(state: State) -> bool:
    """Whether the runs hold more claims than the segments do."""
    held = sum(owner.rows for owner in state.owners.values())
    return sum(run.rows for run in state.runs) > held


def _due(state: State) -> list[SortedRun]:
    """All sorted runs of the first level that has :data:`FAN`."""
    for level in sorted({run.level for run in state.runs}):
        found = [run for run in state.runs if run.level == level]
        if len(found) >= FAN:
            return found
    return []


def _rewrite_earlier(ledger: Path, state: State) -> None:
    logger.info(
        f"{ledger} was written by an earlier version: its {len(state.earlier)} sorted runs are "
        "written again, with checksums"
    )
    try:
        rewritten = [_rewritten(ledger, run) for run in state.earlier]
    except (OSError, ValueError) as error:
        raise LedgerError(damaged(ledger, str(error))) from error
    if state.pending:
        state.pending = state.pending._replace(run=rewritten.pop())
    state.runs, state.earlier = rewritten, []


def _rewritten(ledger: Path, run: EarlierRun) -> SortedRun:
    number = int(run.name.removeprefix("run-"))
    columns = []
    for name, kind in (("high", "<u8"), ("low", "<u8"), ("owner", "<u4")):
        column = np.zeros(0, dtype=kind)
        if run.rows:
            column = np.memmap(ledger / f"{run.name}.{name}", kind, "r", shape=(run.rows,))
        columns.append(column)
    with SortedRunWriter(ledger, number, run.level, run.rows) as writer:
        for at in range(0, run.rows, runs.ROWS_AT_ONCE):
            writer.write(Columns(*(column[at : at + runs.ROWS_AT_ONCE] for column in columns)))
    return writer.run()
