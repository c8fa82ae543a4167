"""Numbered parts: the files that scores and subsets consist of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.files import atomic_path
from laion_assets.layout import PARTITIONS, SCORED_PAIRS
from laion_assets.tables import read_parquet

ROW_GROUP: Final = 100_000


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def part_numbers(folder: Path, pattern: str = PARTITIONS[SCORED_PAIRS].rows.files) -> list[int]:
    """Numbers at the end of the files' names, in order."""
    return sorted(
        int(path.stem.replace("_", "-").rpartition("-")[2]) for path in folder.glob(pattern)
    )


def read_part(path: Path) -> pa.Table:
    """Read a whole part. Hive folders above it are not taken for columns."""
    return read_parquet(path)


def write_part(path: Path, table: pa.Table) -> None:
    with atomic_path(path) as beside:
        pq.write_table(table, beside, compression="zstd", row_group_size=ROW_GROUP)


def open_vectors(path: Path, rows: int) -> NDArray[Any]:
    """Memory-mapped array (rows, dim). Raises ``ValueError`` for another number of rows."""
    vectors: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors.ndim != 2 or len(vectors) != rows:
        raise ValueError(f"{path}: the shape {vectors.shape} does not fit {rows} rows of metadata")
    return vectors
