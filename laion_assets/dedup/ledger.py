"""Which segment holds which (URL, TEXT): exact.

The set of pairs kept is the same whatever the order of work; which of two segments keeps a pair
that both have depends on which claims it first.

The ledger is a folder of sorted runs of claims (:mod:`.runs`) and one small file,
``ledger.json``, that says which runs count and which owner number each segment has. Replacing
that file is the one step that claims, replaces a segment's claims or releases them: a claim whose
owner number is nobody's is void, and is left out when its run is merged. :data:`FAN` runs of a
level are merged into one of the next, so that a look-up asks a few runs for each power of
:data:`FAN` in the number of segments, and reads of each what lies near the segment's own uids.

Claims follow the published partition. They are written as *pending* before the partition is
published and made to count after; whoever opens the ledger next settles what a killed run left
pending by looking at the partition: the digest of its claims is in its ``claims.json``. A segment
whose partition is not there holds nothing. A ledger that is not there is made from the partitions.
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
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.dedup import runs
from laion_assets.dedup.runs import Run, RunWriter
from laion_assets.files import atomic_path, fsync_directory, locked, write_json
from laion_assets.funnel import EXAMPLES_KEPT, StageCounts
from laion_assets.pairs.extract import PairWriter
from laion_assets.pairs.take_out import named
from laion_assets.pairs.uids import UidBuckets
from laion_assets.removals.active import REASONS, Lists
from laion_assets.removals.ledger import Taken
from laion_assets.removals.lists import Entries
from laion_assets.segments import EVERY_HIVE, SegmentKey

logger = logging.getLogger(__name__)

CLAIMS: Final = "claims.json"
"""In a partition: the digest of its claims, and how many they are."""

FAN: Final = 8
"""Runs of one level that are merged into one of the next."""

_STATE: Final = "ledger.json"
_KEPT: Final = 0
_REASONS: Final = ("removed", "blocked", "duplicate")
"""What a row's code 1, 2, 3 means; a row that several apply to gets the first."""
_DUPLICATE: Final = 1 + _REASONS.index("duplicate")


class LedgerError(RuntimeError):
    """The ledger's files do not fit together; the message says what to do."""


@dataclass(frozen=True)
class _Owner:
    number: int
    rows: int


@dataclass(frozen=True)
class _Pending:
    key: SegmentKey
    owner: _Owner
    run: Run
    digest: str


@dataclass
class _State:
    """What ``ledger.json`` says."""

    owners: dict[SegmentKey, _Owner] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    pending: _Pending | None = None
    next_number: int = 0

    def counts(self, but: SegmentKey | None = None) -> NDArray[np.bool_]:
        """(next_number,) bool: whether an owner's claims count."""
        counts = np.zeros(self.next_number, dtype=np.bool_)
        for key, owner in self.owners.items():
            counts[owner.number] = key != but
        return counts

    def next_run(self) -> tuple[int, str]:
        """A number that no owner and no run has had, and the name of the run that it numbers."""
        number = self.next_number
        self.next_number += 1
        return number, f"run-{number:08d}"

    def confirm(self, pending: _Pending) -> None:
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
            pending = _Pending(SegmentKey(crawl, segment), _Owner(number, rows), Run(*run), digest)
        return cls(owners, [Run(*run) for run in value["runs"]], pending, value["next_number"])


class Claims:
    """One segment's turn at the ledger; :func:`claiming` gives it."""

    def __init__(self, ledger: Path, state: _State, key: SegmentKey) -> None:
        self._ledger, self._state, self._key = ledger, state, key
        self.taken: Taken = Taken()
        """What lists took out in :meth:`write`."""

    def write(
        self, pairs: Path, out: Path, *, removals: Entries, blocklists: Entries
    ) -> StageCounts:
        """Write the segment's unique pairs to ``out`` and note its claims as pending.

        ``pairs`` is the folder of its ``part-*.parquet`` (no uid twice); ``out`` gets parts of
        the same names with the rows that are kept, in order, and :data:`CLAIMS`. Not resumable by
        parts: what other segments claim may have changed since, so every call decides anew; two
        calls in a row give the same bytes. Returns the counts of stage ``unique_pairs``.
        """
        parts = sorted(pairs.glob("part-*.parquet"))
        rows = [pq.read_metadata(part).num_rows for part in parts]
        counts = StageCounts("unique_pairs")
        for stale in (*out.glob("part-*.parquet"), *out.glob(".*.part-*.parquet")):
            stale.unlink()
        others = len(self._state.owners) - (self._key in self._state.owners)
        logger.info(
            f"comparing {sum(rows):,} pairs with the claims of {others} other segments, "
            f"in {len(self._state.runs)} runs"
        )
        self.taken = Taken()
        verdicts = _listed(parts, sum(rows), Lists(removals, blocklists), self.taken)
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
        """Mark the duplicates in ``verdicts`` and write what is kept as a run."""
        number, name = self._state.next_run()
        counts = self._state.counts(but=self._key)
        columns = [run.columns(self._ledger) for run in self._state.runs]
        digest = hashlib.blake2b(digest_size=16)
        buckets = _buckets(parts, len(verdicts), scratch)
        with RunWriter(self._ledger, name) as writer:
            for bucket in buckets:
                wanted = verdicts[bucket.row] == _KEPT
                high, low, row = bucket.high[wanted], bucket.low[wanted], bucket.row[wanted]
                for claims in columns:
                    taken = runs.held(high, low, claims, counts)
                    verdicts[row[taken]] = _DUPLICATE
                    high, low, row = high[~taken], low[~taken], row[~taken]
                digest.update(np.stack([high, low], axis=1).astype(">u8").tobytes())
                writer.write(high, low, np.full(len(high), number, dtype=np.uint32))
        buckets.remove()
        run = writer.run(level=0)
        return _Pending(self._key, _Owner(number, run.rows), run, digest.hexdigest())


@contextmanager
def claiming(ledger: Path, partitions: Path, key: SegmentKey) -> Iterator[Claims]:
    """A segment's turn at the ledger, from before its partition is written until it is published.

    ``partitions`` is the folder that partitions are published in, hive style. The block calls
    :meth:`Claims.write` and publishes what that wrote; its claims count once the block has ended
    well. If it does not end well, the segment holds what its published partition holds.

    One writer at a time: blocks while another process on this machine has its turn. Raises
    :class:`LedgerError` if the ledger is damaged.
    """
    with _opened(ledger, partitions) as state:
        yield Claims(ledger, state, key)
        if state.pending is not None:
            state.confirm(state.pending)
            _save(ledger, state)
            _merge(ledger, state)


def release_segment(ledger: Path, partitions: Path, key: SegmentKey) -> None:
    """Take back all the segment's claims; nothing happens if it has none.

    For a partition that stays where it is: the claims of one that is deleted are taken back when
    the ledger is opened next.
    """
    with _opened(ledger, partitions) as state:
        if state.owners.pop(key, None):
            _save(ledger, state)


def unsettled(ledger: Path) -> SegmentKey | None:
    """The segment whose claims are pending: they count if its partition is published."""
    path = ledger / _STATE
    pending = _load(path).pending if path.exists() else None
    return pending.key if pending else None


def claimed(ledger: Path) -> dict[SegmentKey, int]:
    """How many pairs each segment has claimed."""
    path = ledger / _STATE
    if not path.exists():
        return {}
    return {key: owner.rows for key, owner in _load(path).owners.items()}


@contextmanager
def _opened(ledger: Path, partitions: Path) -> Iterator[_State]:
    """The ledger under its lock, agreeing with the partitions."""
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
    return f"the ledger is damaged ({what}): delete {ledger}, and it is made from the partitions"


def _save(ledger: Path, state: _State) -> None:
    write_json(ledger / _STATE, state.to_json())


def _settle(state: _State, partitions: Path) -> None:
    """Decide on what a killed run left pending, and release what has no partition any more."""
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
        logger.info(
            f"{key} is not there any more: its {state.owners[key].rows:,} claims are released"
        )
        del state.owners[key]


def _published_digest(partition: Path) -> str | None:
    path = partition / CLAIMS
    if not path.exists():
        return None
    digest: str = json.loads(path.read_text(encoding="utf-8"))["digest"]
    return digest


def _delete_unlisted(ledger: Path, state: _State) -> None:
    """Files of a writer that was killed, or of runs that were merged."""
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
    """Claim for every partition what it holds."""
    folders = sorted(path for path in partitions.glob(EVERY_HIVE) if path.is_dir())
    for folder in folders:
        key = SegmentKey.of_folder(folder)
        logger.info(f"the ledger is made anew: {key}")
        parts = sorted(folder.glob("part-*.parquet"))
        rows = sum(pq.read_metadata(part).num_rows for part in parts)
        number, name = state.next_run()
        buckets = _buckets(parts, rows, ledger / ".uids")
        with RunWriter(ledger, name) as writer:
            for bucket in buckets:
                owner = np.full(len(bucket.high), number, dtype=np.uint32)
                writer.write(bucket.high, bucket.low, owner)
        buckets.remove()
        state.runs.append(writer.run(level=0))
        state.owners[key] = _Owner(number, rows)
        # Not saved before all are in: half a ledger would be taken for a whole one.
        _merge(ledger, state, save=False)


def _buckets(parts: Sequence[Path], rows: int, scratch: Path) -> UidBuckets:
    buckets = UidBuckets(scratch, rows, runs.ROWS_AT_ONCE)
    buckets.add_parts(parts)
    return buckets


def _merge(ledger: Path, state: _State, *, save: bool = True) -> None:
    """Merge until no level has :data:`FAN` runs."""
    level = 0
    while level <= max((run.level for run in state.runs), default=-1):
        merged = [run for run in state.runs if run.level == level]
        if len(merged) < FAN:
            level += 1
            continue
        rows = sum(run.rows for run in merged)
        logger.info(f"merging {len(merged)} runs of {rows:,} claims")
        _, name = state.next_run()
        run = runs.merge(ledger, merged, name, state.counts(), runs.ROWS_AT_ONCE)
        fsync_directory(ledger)
        state.runs = [*(run for run in state.runs if run.level != level), run]
        if save:
            _save(ledger, state)
        for old in merged:
            old.delete(ledger)


def _listed(parts: Sequence[Path], rows: int, lists: Lists, taken: Taken) -> NDArray[np.uint8]:
    """A code for every row, numbered through the parts: whether a list names it."""
    verdicts = np.full(rows, _KEPT, dtype=np.uint8)
    at = 0
    for part in parts if lists else ():
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=["url", "uid"]):
                found = named(batch["url"].to_pylist(), batch["uid"], lists)
                for row, (name, key) in found.items():
                    verdicts[at + row] = 1 + _REASONS.index(REASONS[name])
                    taken[name, key] += 1
                at += batch.num_rows
    return verdicts


def _write_kept(part: Path, target: Path, verdicts: NDArray[np.uint8], counts: StageCounts) -> None:
    with (
        pq.ParquetFile(part) as file,
        atomic_path(target) as beside,
        PairWriter(beside) as writer,
    ):
        at = 0
        for number in range(file.num_row_groups):
            rows = file.read_row_group(number)
            codes = verdicts[at : at + rows.num_rows]
            at += rows.num_rows
            kept = rows.filter(pa.array(codes == _KEPT))
            writer.write(kept)
            counts.keep(kept.num_rows)
            for code, reason in enumerate(_REASONS, 1):
                refused = np.flatnonzero(codes == code)
                for row in refused[:EXAMPLES_KEPT].tolist():
                    counts.reject(reason, rows["url"][row].as_py())
                counts.reject(reason, n=len(refused[EXAMPLES_KEPT:]))
