"""Which segment holds which (URL, TEXT): exact.

The set of pairs kept is the same whatever the order of work; which of two segments keeps a pair
that both have depends on which claims it first.

The ledger is a folder with one file per segment that holds claims: the uids of its pairs, sorted,
16 bytes each and nothing else. A segment's claims are therefore published, replaced or released
in one step, and its own former claims never count against it. Memory is bounded by reading all
files a range of uids at a time. What one more segment costs grows with the claims already there,
at the speed of reading them in order.

Claims are published before the pairs are. A run killed between the two leaves claims that the
same segment replaces when it is made again, or that :func:`release_segment` takes back.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.files import atomic_path, fsync_directory, locked
from laion_assets.funnel import EXAMPLES_KEPT, StageCounts
from laion_assets.pairs.extract import PairWriter
from laion_assets.pairs.uids import UidBuckets
from laion_assets.progress import Log
from laion_assets.removals.lists import Entries
from laion_assets.schemas import UID_BYTES
from laion_assets.segments import SegmentKey

_KEPT: Final = 0
_REASONS: Final = ("removed", "blocked", "duplicate")
"""What a row's code 1, 2, 3 means; a row that several apply to gets the first."""
_DUPLICATE: Final = 1 + _REASONS.index("duplicate")

ROWS_AT_ONCE: Final = 1_000_000
"""Rows of the segment compared at once; of each other segment about as many are in memory."""


def claim_segment(
    ledger: Path,
    crawl: str,
    segment: str,
    pairs: Path,
    out: Path,
    *,
    removals: Entries,
    blocklists: Entries,
    log: Log,
) -> StageCounts:
    """Write the segment's unique pairs to ``out`` and claim them, replacing its former claims.

    ``pairs`` is the folder of its ``part-*.parquet`` (no uid twice); ``out`` gets parts of the
    same names with the rows that are kept, in order. Not resumable by parts: what other segments
    claim may have changed since, so every call decides anew; two calls in a row give the same.

    Blocks while another process on this machine writes to the ledger. Returns the counts of stage
    ``unique_pairs``. Raises ``ValueError`` if ``crawl`` or ``segment`` is not a partition's.
    """
    key = SegmentKey(crawl, segment)
    parts = sorted(pairs.glob("part-*.parquet"))
    rows = [pq.read_metadata(part).num_rows for part in parts]
    counts = StageCounts("unique_pairs")
    for stale in (*out.glob("part-*.parquet"), *out.glob(".*.part-*.parquet")):
        stale.unlink()
    with _locked(ledger, log):
        verdicts = _listed(parts, sum(rows), removals, blocklists)
        others = [path for path in _claim_files(ledger) if path != _claims(ledger, key)]
        log(f"comparing {sum(rows):,} pairs with the claims of {len(others)} other segments")
        with atomic_path(_claims(ledger, key)) as beside, beside.open("wb") as stream:
            _claim(parts, verdicts, others, out / ".uids", stream)
    at = 0
    for part, n in zip(parts, rows, strict=True):
        _write_kept(part, out / part.name, verdicts[at : at + n], counts)
        at += n
    return counts


def release_segment(ledger: Path, crawl: str, segment: str, log: Log) -> None:
    """Take back all the segment's claims; nothing happens if it has none."""
    with _locked(ledger, log):
        claims = _claims(ledger, SegmentKey(crawl, segment))
        claims.unlink(missing_ok=True)
        fsync_directory(ledger)


def claimed(ledger: Path) -> dict[SegmentKey, int]:
    """How many pairs each segment has claimed."""
    return {
        SegmentKey(*path.stem.split("+")): path.stat().st_size // UID_BYTES
        for path in _claim_files(ledger)
    }


def _claims(ledger: Path, key: SegmentKey) -> Path:
    return ledger / f"{key.crawl}+{key.segment}.uids"


def _claim_files(ledger: Path) -> list[Path]:
    return sorted(path for path in ledger.glob("*.uids") if not path.name.startswith("."))


@contextmanager
def _locked(ledger: Path, log: Log) -> Iterator[None]:
    """One writer at a time."""
    with locked(ledger / ".lock", lambda: log(f"waiting for another writer of {ledger}")):
        for torn in ledger.glob(".*.uids"):  # of a writer that was killed
            torn.unlink()
        yield


def _listed(
    parts: Sequence[Path], rows: int, removals: Entries, blocklists: Entries
) -> NDArray[np.uint8]:
    """A code for every row, numbered through the parts: whether a list names its URL."""
    verdicts = np.full(rows, _KEPT, dtype=np.uint8)
    lists = [(1, removals), (2, blocklists)]
    lists = [(code, entries) for code, entries in lists if entries.names_urls]
    at = 0
    for part in parts if lists else ():
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=["url"]):
                for row, url in enumerate(batch.column(0).to_pylist(), at):
                    verdicts[row] = next(
                        (code for code, entries in lists if entries.matches_url(url)), _KEPT
                    )
                at += batch.num_rows
    return verdicts


def _claim(
    parts: Sequence[Path],
    verdicts: NDArray[np.uint8],
    others: Sequence[Path],
    scratch: Path,
    claims: BinaryIO,
) -> None:
    """Mark the duplicates in ``verdicts`` and write the uids of what is kept to ``claims``."""
    buckets = UidBuckets(scratch, len(verdicts), ROWS_AT_ONCE)
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(columns=["uid"]):
                buckets.add(batch.column(0))
    for bucket in buckets:
        wanted = verdicts[bucket.row] == _KEPT
        high, low, row = bucket.high[wanted], bucket.low[wanted], bucket.row[wanted]
        for other in others:
            taken = _in_claims(high, low, other)
            verdicts[row[taken]] = _DUPLICATE
            high, low, row = high[~taken], low[~taken], row[~taken]
        np.stack([high, low], axis=1).astype(">u8").tofile(claims)
    buckets.remove()


def _in_claims(
    high: NDArray[np.uint64], low: NDArray[np.uint64], claims: Path
) -> NDArray[np.bool_]:
    """Which of the sorted uids are in the file."""
    if not len(high) or not claims.stat().st_size:
        return np.zeros(len(high), dtype=np.bool_)
    words: NDArray[Any] = np.memmap(claims, dtype=">u8", mode="r").reshape(-1, 2)
    return _search(high, low, words, 0, len(words))


def _search(
    high: NDArray[np.uint64], low: NDArray[np.uint64], words: NDArray[Any], begin: int, stop: int
) -> NDArray[np.bool_]:
    """Which of the sorted uids are in ``words[begin:stop]``, read no more than is near them."""
    begin = bisect_left(words[:, 0], high[0], begin, stop)
    stop = bisect_right(words[:, 0], high[-1], begin, stop)
    if stop - begin > ROWS_AT_ONCE and high[0] != high[-1]:
        half = len(high) // 2
        return np.concatenate(
            [
                _search(high[:half], low[:half], words, begin, stop),
                _search(high[half:], low[half:], words, begin, stop),
            ]
        )
    their_high = words[begin:stop, 0].astype(np.uint64)
    their_low = words[begin:stop, 1].astype(np.uint64)
    found = np.zeros(len(high), dtype=np.bool_)
    at = np.searchsorted(their_high, high)
    left = np.flatnonzero(at < len(their_high))
    # Uids that share their first half are next to each other; hardly ever is there more than one.
    while len(left):
        left = left[their_high[at[left]] == high[left]]
        found[left] = their_low[at[left]] == low[left]
        left = left[~found[left]]
        at[left] += 1
        left = left[at[left] < len(their_high)]
    return found


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
