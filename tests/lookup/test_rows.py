"""Rows are read by their numbers from as few row groups as have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets.lookup.rows import read_rows


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Rows 0 to 99 in three parts and row groups of ten."""
    paths = []
    for begin, end in ((0, 35), (35, 35), (35, 100)):
        paths.append(tmp_path / f"part-{len(paths)}.parquet")
        pq.write_table(pa.table({"n": range(begin, end)}), paths[-1], row_group_size=10)
    return paths


def test_rows_come_with_their_numbers(parts: list[Path]) -> None:
    wanted = np.array([0, 9, 10, 34, 35, 44, 45, 99, 100, 4711])
    read = [
        (rows.tolist(), table["n"].to_pylist()) for rows, table in read_rows(parts, wanted, ["n"])
    ]
    assert all(rows == values for rows, values in read)
    assert [rows for rows, _ in read] == [[0, 9], [10], [34], [35, 44], [45], [99]]


def test_other_parts_are_not_opened(parts: list[Path]) -> None:
    parts[2].write_bytes(b"cut")
    (found,) = read_rows(parts, np.array([12], np.uint32), ["n", "no such column"])
    assert found[1].to_pydict() == {"n": [12]}
    assert list(read_rows(parts, np.array([], np.uint32), ["n"])) == []
