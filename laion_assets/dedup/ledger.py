"""Exact record of which segment holds which (URL, TEXT).

The set of kept pairs is the same whatever the order of work. If two segments have a pair, the
first to claim it keeps it.

The ledger is a folder of sorted runs of claims (:mod:`.runs`) and one small file, ``ledger.json``,
with the sorted runs in use and each segment's owner number. Replacing that file is the one step
that makes, replaces or releases claims. A claim whose owner number belongs to no segment is void,
and is left out when its sorted run is merged. :data:`FAN` sorted runs of a level are merged into
one of the next. So a look-up searches a few of them for each power of :data:`FAN` in the number of
segments, and reads only what lies near the segment's own uids.

Claims follow the published partition. They are written as *pending* before the partition is
published and count afterwards. The next process to open the ledger settles what a killed run left
pending: it compares the digest in the partition's ``claims.json``. A segment without a partition
holds nothing. A missing ledger is rebuilt from the partitions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.dedup import runs
from laion_assets.dedup.runs import SortedRun, SortedRunWriter
from laion_assets.files import fsync_directory, locked, write_json
from laion_assets.funnel import EXAMPLES_KEPT, LISTED, StageCounts
from laion_assets.layout import (
    EVERY_HIVE,
    PAIR_PARQUET,
    PARTITIONS,
    UNIQUE_PAIRS,
    SegmentKey,
)
from laion_assets.pairs.extract import PairWriter
from laion_assets.pairs.take_out import listed_rows
from laion_assets.pairs.uids import UidBuckets
from laion_assets.removals.active import REASON_OF_LIST, Lists
from laion_assets.removals.entries import Entries
from laion_assets.removals.ledger import RemovalCounts
from laion_assets.tables import read_parquet, rows_in

logger = logging.getLogger(__name__)

CLAIMS: Final = "claims.json"
"""File in a partition with the digest and the number of its claims."""

FAN: Final = 8
"""Sorted runs of one level that are merged into one of the next."""

_STATE: Final = "ledger.json"
_KEPT: Final = 0
_REASON_OF_CODE: Final = ("removed", "blocked", "duplicate")
"""Reasons of the row codes 1, 2, 3; a row to which several apply gets the first."""
_DUPLICATE: Final = 1 + _REASON_OF_CODE.index("duplicate")


class LedgerError(RuntimeError):
    """The ledger cannot be read, or is damaged; the message says what to do. What caused it decides
    whether a retry may help."""


@dataclass(frozen=True)
class _Owner:
    number: int
    rows: int


@dataclass(frozen=True)
class _Pending:
    key: SegmentKey
    owner: _Owner
    run: SortedRun
    digest: str


@dataclass
class _State:
    """Contents of ``ledger.json``."""

    owners: dict[SegmentKey, _Owner] = field(default_factory=dict)
    runs: list[SortedRun] = field(default_factory=list)
    pending: _Pending | None = None
    next_number: int = 0

    def counts(self, but: SegmentKey | None = None) -> NDArray[np.bool_]:
        """(next_number,) bool: whether an owner's claims count; those of ``but`` do not."""
        counts = np.zeros(self.next_number, dtype=np.bool_)
        for key, owner in self.owners.items():
            counts[owner.number] = key != but
        return counts

    def next_run(self) -> tuple[int, str]:
        """A number that no owner and no sorted run has had, and a sorted run's name with it."""
        number = self.next_number
        self.next_number += 1
        return number, f"run-{number:08d}"

    def confirm(self, pending: _Pending) -> None:
        """Make pending claims count."""
        self.owners[pending.key] = pending.owner
        self.runs.append(pending.run)
        self.pending = None

    def to_json(self) -> dict[str, Any]:
        pending = self.pending
        return {
            "next_number": self.next_number,
            "owners": [
                [key.crawl, key.segment, owner.number, owner.rows]
                for key, owner in sorted(self.owners.items())
            ],
            "runs": [list(run) for run in self.runs],
            "pending": pending
            and [
                [pending.key.crawl, pending.key.segment, pending.owner.number, pending.owner.rows],
                list(pending.run),
                pending.digest,
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> _State:
        owners = {
            SegmentKey(crawl, segment): _Owner(number, rows)
            for crawl, segment, number, rows in value["owners"]
        }
        pending = None
        if value["pending"]:
            (crawl, segment, number, rows), run, digest = value["pending"]
            pending = _Pending(
                SegmentKey(crawl, segment), _Owner(number, rows), SortedRun(*run), digest
            )
        return cls(
            owners, [SortedRun(*run) for run in value["runs"]], pending, value["next_number"]
        )


class Claims:
    """One segment's access to the ledger; :func:`claiming` yields it."""

    def __init__(self, ledger: Path, state: _State, key: SegmentKey) -> None:
        self._ledger, self._state, self._key = ledger, state, key
        self.removed = RemovalCounts()
        """What the lists took out in :meth:`write`."""

    def write(
        self, pairs: Path, out: Path, *, removals: Entries, blocklists: Entries
    ) -> StageCounts:
        """Write the segment's unique pairs to ``out`` and note its claims as pending.

        ``pairs`` is the folder of its ``part-*.parquet`` (no uid twice). ``out`` gets parts of the
        same names with the kept rows in order, and :data:`CLAIMS`. A killed call is not resumed
        part by part: other segments' claims may have changed, so every call decides all rows
        again. Two calls in a row give the same bytes. Returns the counts of stage
        ``unique_pairs``.
        """
        parts = PARTITIONS[PAIR_PARQUET].rows.paths(pairs)
        rows = [rows_in(part) for part in parts]
        counts = StageCounts(UNIQUE_PAIRS)
        for stale in (*PARTITIONS[UNIQUE_PAIRS].rows.paths(out), *out.glob(".*.part-*.parquet")):
            stale.unlink()
        others = len(self._state.owners) - (self._key in self._state.owners)
        logger.info(
            f"comparing {sum(rows):,} pairs with the claims of {others} other segments, "
            f"in {len(self._state.runs)} sorted runs"
        )
        self.removed = RemovalCounts()
        verdicts = _listed(parts, sum(rows), Lists(removals, blocklists), self.removed)
        pending = self._claim(parts, verdicts, out / ".uids")
        write_json(out / CLAIMS, {"digest": pending.digest, "claims": pending.owner.rows})
        at = 0
        for part, n in zip(parts, rows, strict=True):
            _write_kept(part, out / part.name, verdicts[at : at + n], counts)
            at += n
        self._state.pending = pending
        _save(self._ledger, self._state)
        return counts

    def _claim(self, parts: Sequence[Path], verdicts: NDArray[np.uint8], scratch: Path) -> _Pending:
        """Mark the duplicates in ``verdicts`` and write the kept rows as a sorted run."""
        number, name = self._state.next_run()
        counts = self._state.counts(but=self._key)
        columns = [run.columns(self._ledger) for run in self._state.runs]
        digest = hashlib.blake2b(digest_size=16)
        buckets = _buckets(parts, len(verdicts), scratch)
        with SortedRunWriter(self._ledger, name) as writer:
            for bucket in buckets:
                wanted = verdicts[bucket.row] == _KEPT
                high, low, row = bucket.high[wanted], bucket.low[wanted], bucket.row[wanted]
                for claims in columns:
                    held = runs.held(high, low, claims, counts)
                    verdicts[row[held]] = _DUPLICATE
                    high, low, row = high[~held], low[~held], row[~held]
                digest.update(np.stack([high, low], axis=1).astype(">u8").tobytes())
                writer.write(high, low, np.full(len(high), number, dtype=np.uint32))
        buckets.remove()
        run = writer.run(level=0)
        return _Pending(self._key, _Owner(number, run.rows), run, digest.hexdigest())


@contextmanager
def claiming(ledger: Path, partitions: Path, key: SegmentKey) -> Iterator[Claims]:
    """Hold the ledger for a segment, from before its partition is written until it is published.

    ``partitions`` is the folder of the published partitions, hive style. The block calls
    :meth:`Claims.write` and publishes what that wrote; the claims count once the block succeeds. If
    it fails, the segment holds what its published partition holds.

    One writer at a time: waits while another process on this machine holds the ledger. Raises
    :class:`LedgerError` if the ledger is damaged.
    """
    with _opened(ledger, partitions) as state:
        yield Claims(ledger, state, key)
        if state.pending is not None:
            state.confirm(state.pending)
            _save(ledger, state)
            _merge(ledger, state)


def release_segment(ledger: Path, partitions: Path, key: SegmentKey) -> None:
    """Release all the segment's claims, if it has any.

    Meant for a partition that stays in place: the claims of a deleted one are released when the
    ledger is next opened.
    """
    with _opened(ledger, partitions) as state:
        if state.owners.pop(key, None):
            _save(ledger, state)


def unsettled(ledger: Path) -> SegmentKey | None:
    """The segment whose claims are pending, i.e. count if its partition was published; or None."""
    path = ledger / _STATE
    pending = _load(path).pending if path.exists() else None
    return pending.key if pending else None


def claimed(ledger: Path) -> dict[SegmentKey, int]:
    """Segment -> the number of pairs that it has claimed."""
    path = ledger / _STATE
    if not path.exists():
        return {}
    return {key: owner.rows for key, owner in _load(path).owners.items()}


@contextmanager
def _opened(ledger: Path, partitions: Path) -> Iterator[_State]:
    """Lock the ledger and bring it in line with the partitions."""
    with locked(ledger / ".lock", lambda: logger.info(f"waiting for another writer of {ledger}")):
        path = ledger / _STATE
        if path.exists():
            state = _load(path)
            _settle(state, partitions)
        else:
            state = _State()
        _delete_unlisted(ledger, state)
        _check(ledger, state)
        if not path.exists():
            _rebuild(ledger, state, partitions)
        _save(ledger, state)
        yield state


def _load(path: Path) -> _State:
    try:
        return _State.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise LedgerError(_damaged(path.parent, f"{path.name}: {error}")) from error


def _damaged(ledger: Path, what: str) -> str:
    return f"the ledger is damaged ({what}): delete {ledger}, and the next run rebuilds it"


def _save(ledger: Path, state: _State) -> None:
    write_json(ledger / _STATE, state.to_json())


def _settle(state: _State, partitions: Path) -> None:
    """Decide what a killed run left pending, and release the claims of deleted partitions."""
    pending = state.pending
    if pending is not None:
        if _published_digest(partitions / pending.key.hive) == pending.digest:
            logger.info(
                f"the claims of {pending.key} were published before its run ended: they count"
            )
            state.confirm(pending)
        else:
            logger.info(f"the claims of {pending.key} were never published: they are dropped")
            state.pending = None
    for key in [key for key in state.owners if not (partitions / key.hive).is_dir()]:
        logger.info(f"{key} was deleted: its {state.owners[key].rows:,} claims are released")
        del state.owners[key]


def _published_digest(partition: Path) -> str | None:
    path = partition / CLAIMS
    if not path.exists():
        return None
    digest: str = json.loads(path.read_text(encoding="utf-8"))["digest"]
    return digest


def _delete_unlisted(ledger: Path, state: _State) -> None:
    """Delete the files of a killed writer and of merged sorted runs."""
    names = {run.name for run in state.runs}
    for path in ledger.iterdir():
        if path.name in (".lock", _STATE) or path.stem in names:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check(ledger: Path, state: _State) -> None:
    try:
        for run in state.runs:
            run.columns(ledger)
    except (OSError, ValueError) as error:
        raise LedgerError(_damaged(ledger, str(error))) from error


def _rebuild(ledger: Path, state: _State, partitions: Path) -> None:
    """Claim every published partition's pairs for its segment."""
    folders = sorted(path for path in partitions.glob(EVERY_HIVE) if path.is_dir())
    for folder in folders:
        key = SegmentKey.of_folder(folder)
        logger.info(f"rebuilding the ledger from {key}")
        parts = PARTITIONS[UNIQUE_PAIRS].rows.paths(folder)
        rows = rows_in(*parts)
        number, name = state.next_run()
        buckets = _buckets(parts, rows, ledger / ".uids")
        with SortedRunWriter(ledger, name) as writer:
            for bucket in buckets:
                owner = np.full(len(bucket.high), number, dtype=np.uint32)
                writer.write(bucket.high, bucket.low, owner)
        buckets.remove()
        state.runs.append(writer.run(level=0))
        state.owners[key] = _Owner(number, rows)
        # Saved only with all partitions: half a ledger would be taken for a whole one.
        _merge(ledger, state, save=False)


def _buckets(parts: Sequence[Path], rows: int, scratch: Path) -> UidBuckets:
    buckets = UidBuckets(scratch, rows, runs.ROWS_AT_ONCE)
    buckets.add_parts(parts)
    return buckets


def _merge(ledger: Path, state: _State, *, save: bool = True) -> None:
    """Merge until no level has :data:`FAN` sorted runs."""
    level = 0
    while level <= max((run.level for run in state.runs), default=-1):
        merged = [run for run in state.runs if run.level == level]
        if len(merged) < FAN:
            level += 1
            continue
        rows = sum(run.rows for run in merged)
        logger.info(f"merging {len(merged)} sorted runs of {rows:,} claims")
        _, name = state.next_run()
        run = runs.merge(ledger, merged, name, state.counts(), runs.ROWS_AT_ONCE)
        fsync_directory(ledger)
        state.runs = [*(run for run in state.runs if run.level != level), run]
        if save:
            _save(ledger, state)
        for old in merged:
            old.delete(ledger)


def _listed(
    parts: Sequence[Path], rows: int, lists: Lists, removed: RemovalCounts
) -> NDArray[np.uint8]:
    """(rows,) uint8: the code of every row, numbered through the parts, from the lists alone.

    What the lists take out is added to ``removed``.
    """
    verdicts = np.full(rows, _KEPT, dtype=np.uint8)
    at = 0
    for part in parts if lists else ():
        for row, (name, key) in listed_rows(part, lists).items():
            verdicts[at + row] = 1 + _REASON_OF_CODE.index(REASON_OF_LIST[name])
            removed[name, key] += 1
        at += rows_in(part)
    return verdicts


def _write_kept(part: Path, target: Path, verdicts: NDArray[np.uint8], counts: StageCounts) -> None:
    with PairWriter(target) as writer:
        writer.copy(part, verdicts == _KEPT)
    counts.keep(int(np.count_nonzero(verdicts == _KEPT)))
    for code, reason in enumerate(_REASON_OF_CODE, 1):
        rows = np.flatnonzero(verdicts == code)
        wanted = 0 if reason in LISTED else EXAMPLES_KEPT - len(counts.examples.get(reason, []))
        for url in _urls(part, rows[:wanted]):
            counts.reject(reason, url)
        counts.reject(reason, n=len(rows[wanted:]))


def _urls(part: Path, rows: NDArray[np.int64]) -> list[str]:
    urls: list[str] = []
    if len(rows):
        urls = read_parquet(part, ["url"])["url"].take(rows).to_pylist()
    return urls
