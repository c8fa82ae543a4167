"""Table files: parts, the key in the path, vectors of unknown number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laion_assets import tables
from laion_assets.tables import PartsWriter, VectorsWriter, batches, key_in, read_parquet, spans

SCHEMA = pa.schema([("n", pa.int64()), ("crawl", pa.string()), ("segment", pa.string())])
HIVE = "asset/crawl=CC-MAIN-2021-04/segment=07"


def _rows(start: int, stop: int) -> pa.Table:
    n = stop - start
    return pa.table([range(start, stop), ["CC-MAIN-2021-04"] * n, ["07"] * n], schema=SCHEMA)


def _write(folder: Path, rows: int, by: int, rows_per_part: int) -> list[Path]:
    with PartsWriter(folder, SCHEMA, rows=rows_per_part) as writer:
        for start in range(0, rows, by):
            writer.write(_rows(start, min(start + by, rows)))
    return writer.parts


@pytest.mark.parametrize(
    ("rows", "sizes"), [(0, [0]), (9, [9]), (10, [10]), (11, [10, 1]), (40, [10] * 4)]
)
def test_parts_are_full_but_the_last(tmp_path: Path, rows: int, sizes: list[int]) -> None:
    parts = _write(tmp_path, rows, 7, 10)
    assert [tables.rows_in(part) for part in parts] == sizes
    assert parts == sorted(tmp_path.iterdir())
    read = pa.concat_tables([read_parquet(part) for part in parts])
    assert read["n"].to_pylist() == list(range(rows))


def test_row_groups_are_large_however_rows_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP", 4)
    (part,) = _write(tmp_path, 10, 1, 100)
    metadata = pq.read_metadata(part)
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [4, 4, 2]


def test_row_groups_are_small_where_rows_are_looked_up(tmp_path: Path) -> None:
    with PartsWriter(tmp_path, SCHEMA, row_group=3, rows=10) as writer:
        writer.write(_rows(0, 12))
    groups = [
        [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        for metadata in map(pq.read_metadata, writer.parts)
    ]
    assert groups == [[3, 3, 3, 1], [2]]


def test_parts_of_a_longer_table_do_not_stay(tmp_path: Path) -> None:
    _write(tmp_path, 40, 10, 10)
    assert len(_write(tmp_path, 15, 10, 10)) == len(list(tmp_path.iterdir())) == 2


def test_a_failed_writer_leaves_whole_parts_only(tmp_path: Path) -> None:
    with pytest.raises(KeyError), PartsWriter(tmp_path, SCHEMA, rows=10) as writer:
        writer.write(_rows(0, 15))
        raise KeyError
    assert [tables.rows_in(part) for part in tmp_path.iterdir()] == [10]


def test_the_key_stands_in_the_path_alone(tmp_path: Path) -> None:
    folder = tmp_path / HIVE
    (part,) = _write(folder, 3, 3, 10)
    assert pq.read_schema(part).names == ["n"]
    assert key_in(part) == tables.SegmentKey("CC-MAIN-2021-04", "07")
    assert read_parquet(part).select(SCHEMA.names).equals(_rows(0, 3))
    assert read_parquet(part, ["segment", "n"]).column_names == ["segment", "n"]
    assert read_parquet(part, ["n"]).column_names == ["n"]
    read = pa.Table.from_batches(batches(part, ["n", "crawl", "segment"], rows=2))
    assert read.equals(_rows(0, 3))
    # What the readers that people bring make of it, without options.
    assert pd.read_parquet(tmp_path / "asset")["crawl"].tolist() == ["CC-MAIN-2021-04"] * 3


def test_outside_of_a_partition_the_key_is_a_column(tmp_path: Path) -> None:
    (part,) = _write(tmp_path, 3, 3, 10)
    assert key_in(part) is None
    assert read_parquet(part).equals(_rows(0, 3))


def test_vectors_are_counted_at_the_end(tmp_path: Path) -> None:
    vectors = np.arange(24, dtype=np.float16).reshape(6, 4)
    with VectorsWriter(tmp_path / "v.npy", 4) as writer:
        writer.write(vectors[:1])
        writer.write(vectors[1:])
    assert np.array_equal(np.load(tmp_path / "v.npy"), vectors)
    with VectorsWriter(tmp_path / "none.npy", 4):
        pass
    assert np.load(tmp_path / "none.npy").shape == (0, 4)


def test_a_failed_writer_leaves_no_vectors(tmp_path: Path) -> None:
    with pytest.raises(KeyError), VectorsWriter(tmp_path / "v.npy", 4):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], [(0, 0)]),
        ([0, 0], [(0, 2)]),
        ([10], [(0, 1)]),
        ([3, 3, 3, 3, 20, 1], [(0, 4), (4, 5), (5, 6)]),
        ([9, 9], [(0, 2)]),
    ],
)
def test_parts_of_whole_units(sizes: list[int], expected: list[tuple[int, int]]) -> None:
    assert spans(sizes, 10) == expected
