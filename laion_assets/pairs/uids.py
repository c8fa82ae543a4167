"""Sort the uids of more rows than memory should hold, bucket by bucket on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.schemas import UID_BYTES

ROWS_PER_BUCKET: Final = 4_000_000
"""Rows of one bucket: about 24 bytes each on disk, three times that in memory during a sort."""

_RECORD: Final = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])


class Bucket(NamedTuple):
    """Rows whose uids share a range of first bits, sorted by (uid, row); (n,) uint64 each."""

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    row: NDArray[np.uint64]

    def repeated_rows(self) -> NDArray[np.uint64]:
        """Rows whose uid an earlier row also has."""
        same = (self.high[1:] == self.high[:-1]) & (self.low[1:] == self.low[:-1])
        repeated: NDArray[np.uint64] = self.row[1:][same]
        return repeated

    def rows_in_groups(self, least: int) -> NDArray[np.uint64]:
        """Rows whose uid at least so many rows have, themselves included."""
        differs = (self.high[1:] != self.high[:-1]) | (self.low[1:] != self.low[:-1])
        edges = np.flatnonzero(np.concatenate([[True], differs, [True]]))
        sizes = np.diff(edges)
        grouped: NDArray[np.uint64] = self.row[np.repeat(sizes >= least, sizes)]
        return grouped


def halves(uids: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """A ``uid`` column as two (n,) uint64 arrays whose order is the order of the uids' bytes.

    Raises ``ValueError`` for another type or for nulls.
    """
    if isinstance(uids, pa.ChunkedArray):
        uids = uids.combine_chunks()
    if uids.null_count or uids.type != pa.binary(UID_BYTES):
        raise ValueError(f"uids are {uids.type} with {uids.null_count} nulls")
    words: NDArray[Any] = np.frombuffer(uids.buffers()[1], dtype=">u8").reshape(-1, 2)
    words = words[uids.offset : uids.offset + len(uids)]
    return words[:, 0].astype(np.uint64), words[:, 1].astype(np.uint64)


class UidBuckets:
    """Spreads rows on disk by the first bits of their uids, then yields them sorted.

    ``folder`` is emptied first and removed by :meth:`remove`. ``rows`` is the number of rows that
    will be added; they are numbered from 0 in the order of addition.
    """

    def __init__(self, folder: Path, rows: int, rows_per_bucket: int = ROWS_PER_BUCKET) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._bits = max(0, (-(-rows // rows_per_bucket) - 1).bit_length())
        self._next_row = 0

    def add_parts(self, parts: Sequence[Path]) -> None:
        """Add the rows of parquet files, in their order."""
        for part in parts:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(columns=["uid"]):
                    self.add(batch.column(0))

    def add(self, uids: pa.Array | pa.ChunkedArray) -> None:
        """Add rows, given by their uids."""
        high, low = halves(uids)
        records = np.empty(len(high), dtype=_RECORD)
        records["high"], records["low"] = high, low
        records["row"] = np.arange(self._next_row, self._next_row + len(high))
        self._next_row += len(high)
        number = self._number(high)
        records = records[np.argsort(number, kind="stable")]
        stops = np.cumsum(np.bincount(number, minlength=1 << self._bits))
        for bucket, stop in enumerate(stops):
            begin = stops[bucket - 1] if bucket else 0
            if stop > begin:
                with self._path(bucket).open("ab") as stream:
                    stream.write(records[begin:stop].tobytes())

    def __iter__(self) -> Iterator[Bucket]:
        """Yield all buckets in the order of their uids."""
        for number in range(1 << self._bits):
            path = self._path(number)
            if not path.exists():
                continue
            records = np.fromfile(path, dtype=_RECORD)
            # A stable sort: among equal uids, the row added first stays first.
            records = records[np.lexsort((records["low"], records["high"]))]
            high, low, row = (np.ascontiguousarray(records[name]) for name in _RECORD.names or ())
            yield Bucket(high, low, row)

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder)

    def _number(self, high: NDArray[np.uint64]) -> NDArray[np.int64]:
        # A shift by all 64 bits is undefined.
        return ((high >> np.uint64(1)) >> np.uint64(63 - self._bits)).astype(np.int64)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.bin"
