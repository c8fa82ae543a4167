"""Reads rows of a table by their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


def read_rows(
    paths: Sequence[Path], rows: NDArray[Any], columns: Sequence[str]
) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
    """Yield rows of a table's files with their numbers, a row group at a time.

    ``rows``: sorted numbers, counted from 0 through all ``paths``; those that the files do not
    reach are left out. ``columns``: those of them that a file has are read, of no row group but
    those that hold such rows.
    """
    rows = rows.astype(np.int64)
    start = 0
    for path in paths:
        if len(rows) == 0 or start > rows[-1]:
            return
        with pq.ParquetFile(path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                first, last = np.searchsorted(rows, [start, stop])
                if last > first:
                    inside = rows[first:last]
                    table = file.read_row_group(group, columns=present)
                    yield inside, table.take(pa.array(inside - start))
                start = stop
