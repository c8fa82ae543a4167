"""Exact record of which segment holds which (URL, TEXT).

The set of kept pairs is the same whatever the order of work. If two segments have a pair, the
first to claim it keeps it.

The ledger is a folder of sorted runs of claims (:mod:`.runs`) and one small file, ``ledger.json``
(:mod:`.state`), with the sorted runs in use and each segment's owner number. A claim whose owner
number belongs to no segment is void, and is left out when its sorted run is merged.
:data:`.upkeep.FAN` sorted runs of a level are merged into one of the next. So a look-up searches a
few of them for each power of that in the number of segments, and reads their filters and what lies
near the segment's own uids.

Most of the work needs no lock: sorted runs never change, so a segment is compared with those that
there are, and under the lock only with those that are new. Merges are made beside, too.

Claims follow the published partition. They are written as *pending* before the partition is
published and count afterwards. The next process to open the ledger settles what a killed run left
pending: it compares the digest in the partition's ``_claims.json``. A segment without a partition
holds nothing. A missing ledger is rebuilt from the partitions.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.dedup import runs
from laion_assets.dedup.filter import marks
from laion_assets.dedup.runs import Columns, OpenRun, SortedRunWriter
from laion_assets.dedup.state import (
    LedgerError,
    Owner,
    Pending,
    State,
    load,
    open_runs,
    save,
    snapshot,
    telling,
)
from laion_assets.dedup.upkeep import CLAIMS, buckets, merge_due, opened
from laion_assets.files import write_json
from laion_assets.funnel import EXAMPLES_KEPT, LISTED, StageCounts
from laion_assets.layout import PAIR_PARQUET, PARTITIONS, UNIQUE_PAIRS, SegmentKey
from laion_assets.pairs.extract import DICTIONARY
from laion_assets.pairs.take_out import listed_rows
from laion_assets.removals.active import REASON_OF_LIST, Lists
from laion_assets.removals.entries import Entries
from laion_assets.removals.ledger import RemovalCounts
from laion_assets.tables import PartsWriter, batches, rows_in

logger = logging.getLogger(__name__)

_KEPT: Final = 0
_REASON_OF_CODE: Final = ("removed", "blocked", "duplicate")
"""Reasons of the row codes 1, 2, 3; a row to which several apply gets the first."""
_DUPLICATE: Final = 1 + _REASON_OF_CODE.index("duplicate")

_NOBODY: Final = np.iinfo(np.uint32).max
_COMPARED: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8"), ("owner", "<u4")])
"""A row of the segment in the order of uids, and the number of the owner that has claimed it."""


class Claims:
    """One segment's access to the ledger; :func:`claiming` yields it."""

    def __init__(self, ledger: Path, partitions: Path, key: SegmentKey, lock: ExitStack) -> None:
        self._ledger, self._partitions, self._key = ledger, partitions, str(key)
        self._lock = lock
        self.state: State | None = None
        """The ledger's state once :meth:`write` has locked it."""
        self.removed = RemovalCounts()
        """What the lists took out in :meth:`write`."""

    def write(
        self, pairs: Path, out: Path, *, removals: Entries, blocklists: Entries
    ) -> StageCounts:
        """Write the segment's unique pairs to ``out`` and note its claims as pending.

        ``pairs`` is the folder of its ``part-*.parquet`` (no uid twice). ``out`` gets the kept rows
        in their order, in parts as :class:`~laion_assets.tables.PartsWriter` makes them, and
        :data:`CLAIMS`. A killed call is not resumed part by part: other segments' claims may have
        changed, so every call decides all rows again. Two calls in a row give the same bytes. The
        ledger is locked from here on until the block of :func:`claiming` ends. Returns the counts
        of stage ``unique_pairs``. Raises :class:`LedgerError` if the ledger is damaged.
        """
        parts = PARTITIONS[PAIR_PARQUET].rows.paths(pairs)
        rows = rows_in(*parts)
        self.removed = RemovalCounts()
        verdicts = _listed(parts, rows, Lists(removals, blocklists), self.removed)
        compared = out / ".compared"
        with telling(self._ledger):
            before = self._compare(parts, verdicts, compared)
            if self.state is None:
                self.state = self._lock.enter_context(opened(self._ledger, self._partitions))
            pending = self._claim(self.state, before, verdicts, compared)
        compared.unlink()
        write_json(out / CLAIMS, {"digest": pending.digest, "claims": pending.owner.rows})
        counts = _write_kept(parts, out, verdicts)
        self.state.pending = pending
        save(self._ledger, self.state)
        return counts

    def _compare(self, parts: Sequence[Path], verdicts: NDArray[np.uint8], compared: Path) -> State:
        """Write the rows that no list has taken out to ``compared``, with the owners of those that
        other segments hold in the returned state."""
        with snapshot(self._ledger) as (state, open_), compared.open("wb") as file:
            others = len(state.owners) - (self._key in state.owners)
            logger.info(
                f"comparing {len(verdicts):,} pairs with the claims of {others:,} other segments, "
                f"in {len(open_)} sorted runs"
            )
            counts = state.counts(but=self._key)
            uids = buckets(parts, len(verdicts), compared.with_suffix(".uids"))
            for bucket in uids:
                wanted = verdicts[bucket.row] == _KEPT
                rows = np.empty(np.count_nonzero(wanted), dtype=_COMPARED)
                for name, column in zip(bucket._fields, bucket, strict=True):
                    rows[name] = column[wanted]
                rows["owner"] = _owners(bucket.high[wanted], bucket.low[wanted], open_, counts)
                rows.tofile(file)
            uids.remove()
        return state

    def _claim(
        self, state: State, before: State, verdicts: NDArray[np.uint8], compared: Path
    ) -> Pending:
        """Mark the duplicates in ``verdicts`` and write the kept rows as a sorted run.

        ``before``: the state with which the rows in the file ``compared`` were compared.
        """
        counts = state.counts(but=self._key)
        rebuilt = state.id != before.id
        new = [run for run in state.runs if rebuilt or run.newest > before.newest]
        number = state.new_number()
        digest = hashlib.blake2b(digest_size=16)
        with (
            compared.open("rb") as file,
            open_runs(self._ledger, new) as open_,
            SortedRunWriter(self._ledger, number, 0, len(verdicts)) as writer,
        ):
            while len(rows := np.fromfile(file, _COMPARED, runs.ROWS_AT_ONCE)):
                high, low, row, owner = (rows[name].copy() for name in _COMPARED.names or ())
                held = owner != _NOBODY
                # An owner may have let go meanwhile; a rebuilt ledger has given other numbers.
                held[held] = False if rebuilt else counts[owner[held]]
                left = np.flatnonzero(~held)
                held[left] = _owners(high[left], low[left], open_, counts) != _NOBODY
                verdicts[row[held]] = _DUPLICATE
                high, low = high[~held], low[~held]
                digest.update(np.stack([high, low], axis=1).astype(">u8").tobytes())
                writer.write(Columns(high, low, np.full(len(high), number, dtype=np.uint32)))
        run = writer.run()
        return Pending(self._key, Owner(number, run.rows), run, digest.hexdigest())


@contextmanager
def claiming(ledger: Path, partitions: Path, key: SegmentKey) -> Iterator[Claims]:
    """Claim a segment's pairs, and have them count if its partition is published.

    ``partitions`` is the folder of the published partitions, hive style. The block calls
    :meth:`Claims.write` and publishes what that wrote; the claims count once the block succeeds. If
    it fails, the segment holds what its published partition holds.

    One segment at a time is published: :meth:`Claims.write` compares, then waits while another
    process on this machine holds the ledger. Sorted runs are merged behind the block, without
    stopping others. Raises :class:`LedgerError` if the ledger is damaged.
    """
    with ExitStack() as lock:
        claims = Claims(ledger, partitions, key, lock)
        yield claims
        state = claims.state
        if state is not None and state.pending is not None:
            state.confirm(state.pending)
            save(ledger, state)
    merge_due(ledger)


def release_segment(ledger: Path, partitions: Path, key: SegmentKey) -> None:
    """Release all the segment's claims, if it has any.

    Meant for a partition that stays in place: the claims of a deleted one are released when the
    ledger is next opened.
    """
    with opened(ledger, partitions) as state:
        if state.owners.pop(str(key), None):
            save(ledger, state)


def unsettled(ledger: Path) -> SegmentKey | None:
    """The segment whose claims are pending, i.e. count if its partition was published; or None."""
    pending = load(ledger).pending
    return SegmentKey.parse(pending.key) if pending else None


def claimed(ledger: Path) -> dict[SegmentKey, int]:
    """Segment -> the number of pairs that it has claimed."""
    return {SegmentKey.parse(key): owner.rows for key, owner in load(ledger).owners.items()}


def owners(ledger: Path, uid_high: NDArray[Any]) -> list[tuple[int, SegmentKey]]:
    """Which segments have claimed uids: ``(index into uid_high, segment)``, sorted.

    ``uid_high``: (n,) uint64, the first 8 bytes of each uid, big-endian, or SAMPLE_IDs, (n,) int64,
    which are the same bits. Uids that share their first half may have several owners. Needs no
    lock, and costs what it reads. The claims of a partition that was deleted are there until the
    next segment claims. Raises :class:`LedgerError` if the ledger is damaged.
    """
    uid_high = uid_high.view(np.uint64)
    order = np.argsort(uid_high)
    high = uid_high[order]
    marked, found = marks(high), set()
    with telling(ledger), snapshot(ledger) as (state, open_):
        if state.earlier:
            raise LedgerError(
                f"{ledger} was written by an earlier version: materialize {UNIQUE_PAIRS} of one "
                "segment, and it is brought up to date"
            )
        key_of = {owner.number: key for key, owner in state.owners.items()}
        for run in open_:
            index, claims = run.find(high, marked)
            for at, number in zip(order[index].tolist(), claims.owner.tolist(), strict=True):
                if number in key_of:
                    found.add((at, SegmentKey.parse(key_of[number])))
    return sorted(found)


def _owners(
    high: NDArray[np.uint64],
    low: NDArray[np.uint64],
    open_: Sequence[OpenRun],
    counts: NDArray[np.bool_],
) -> NDArray[np.uint32]:
    """(n,): the number of the owner of each uid, among those that ``counts``, or :data:`_NOBODY`.

    ``high``, ``low``: (n,) each, sorted by ``high``. ``counts``: (owners,) bool.
    """
    found = np.full(len(high), _NOBODY, dtype=np.uint32)
    left, marked = np.arange(len(high)), marks(high)
    for run in open_:
        index, claims = run.find(high[left], marked[left])
        index = left[index]
        same = (claims.low == low[index]) & counts[claims.owner]
        found[index[same]] = claims.owner[same]
        left = left[found[left] == _NOBODY]
    return found


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


def _write_kept(parts: Sequence[Path], out: Path, verdicts: NDArray[np.uint8]) -> StageCounts:
    """Write the rows that are kept to the parts in ``out``."""
    counts, at = StageCounts(UNIQUE_PAIRS), 0
    with PartsWriter(out, schemas.PAIRS, use_dictionary=DICTIONARY) as writer:
        for batch in (batch for part in parts for batch in batches(part)):
            codes = verdicts[at : at + batch.num_rows]
            at += batch.num_rows
            writer.write(pa.Table.from_batches([batch.filter(pa.array(codes == _KEPT))]))
            counts.keep(int(np.count_nonzero(codes == _KEPT)))
            for code, reason in enumerate(_REASON_OF_CODE, 1):
                rows = np.flatnonzero(codes == code)
                wanted = 0 if reason in LISTED else EXAMPLES_KEPT
                wanted -= len(counts.examples.get(reason, []))
                for url in batch["url"].take(pa.array(rows[: max(0, wanted)])).to_pylist():
                    counts.reject(reason, url)
                counts.reject(reason, n=len(rows[max(0, wanted) :]))
    return counts
