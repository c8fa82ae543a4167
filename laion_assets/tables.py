"""Table files: how rows are read from parquet and written to it, in the lake and outside.

A partition's table is few large files, ``part-00000.parquet`` and on, of :data:`ROWS_PER_PART` rows
each but the last, whatever units its stage works in. The partition's key stands in the folders
``crawl=…/segment=…`` and not in the files, as hive readers expect: with the columns in both places
pandas and pyarrow refuse the file. Readers of this module give the columns back. A file outside
such folders has them as columns.

What does not belong here: which tables there are (:mod:`laion_assets.layout`), their columns
(:mod:`laion_assets.schemas`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets.files import FileWriter, atomic_path
from laion_assets.layout import SegmentKey

ROWS_PER_PART: Final = 1_000_000
ROW_GROUP: Final = 100_000
PARTS: Final = "part-*.parquet"
"""Pattern of the names of a table's parts."""

KEY_COLUMNS: Final = ("crawl", "segment")

UNITS: Final = ".raw"
"""Folder, in that of a partition in the making, of what a stage has finished and not yet joined."""


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def part_number(part: Path) -> int:
    return int(part.stem.removeprefix("part-"))


def parts_of(rows: int) -> int:
    """Number of parts that hold so many rows; no rows have one, too."""
    return max(1, -(-rows // ROWS_PER_PART))


def spans(sizes: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """Which units of these sizes, from one number to before another, make each part of a table.

    A part has whole units, and ends with the one that makes it ``rows`` rows. Without any units
    there is a part, too, from which readers learn the columns.
    """
    found, begin, n = [], 0, 0
    for number, size in enumerate(sizes, 1):
        n += size
        if n >= rows:
            found.append((begin, number))
            begin, n = number, 0
    return found if found and begin == len(sizes) else [*found, (begin, len(sizes))]


def key_in(path: Path) -> SegmentKey | None:
    """The key of the partition whose folder holds ``path``, however deep; None outside of one."""
    for folder in path.absolute().parents:
        if folder.name.startswith("segment=") and folder.parent.name.startswith("crawl="):
            return SegmentKey.of_folder(folder)
    return None


def stored(schema: pa.Schema, path: Path) -> pa.Schema:
    """The columns of ``schema`` that a file at ``path`` has: not those that its folders name."""
    if key_in(path) is None:
        return schema
    return pa.schema([field for field in schema if field.name not in KEY_COLUMNS], schema.metadata)


def rows_in(*parquet: Path) -> int:
    """Number of rows in parquet files, from their footers."""
    return sum(int(pq.read_metadata(path).num_rows) for path in parquet)


def describe(path: Path) -> dict[str, Any]:
    """``rows`` of a parquet file, and its ``columns`` with their types, as one sorted text."""
    footer = pq.read_metadata(path)
    columns = sorted(f"{field.name} {field.type}" for field in footer.schema.to_arrow_schema())
    return {"rows": footer.num_rows, "columns": ", ".join(columns)}


def read_parquet(
    path: Path, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
) -> pa.Table:
    """The rows of one parquet file, or of some of its row groups: the named columns, or all.

    Columns that the path's folders name come last if they are not asked for by name.
    """
    with pq.ParquetFile(path) as file:
        names, key = _asked(file, path, columns)
        groups = range(file.num_row_groups) if row_groups is None else row_groups
        table = file.read_row_groups(groups, columns=names)
        if columns is None:
            columns = [*names, *key]
        return pa.table(
            [
                pa.repeat(pa.scalar(key[name]), table.num_rows) if name in key else table[name]
                for name in columns
            ],
            names=list(columns),
        )


def batches(
    path: Path, columns: Sequence[str] | None = None, rows: int = 65_536
) -> Iterator[pa.RecordBatch]:
    """The rows of one parquet file in order, at most ``rows`` at a time, as :func:`read_parquet`
    has them."""
    with pq.ParquetFile(path) as file:
        names, key = _asked(file, path, columns)
        for batch in file.iter_batches(rows, columns=names):
            asked = [*names, *key] if columns is None else list(columns)
            yield pa.record_batch(
                [
                    pa.repeat(pa.scalar(key[name]), batch.num_rows) if name in key else batch[name]
                    for name in asked
                ],
                names=asked,
            )


def _asked(
    file: pq.ParquetFile, path: Path, columns: Sequence[str] | None
) -> tuple[list[str], dict[str, str]]:
    """Which columns to read from the file, and the values of those that its path gives."""
    key = key_in(path)
    in_file = file.schema_arrow.names
    in_path = {"crawl": key.crawl, "segment": key.segment} if key else {}
    in_path = {
        name: value
        for name, value in in_path.items()
        if name not in in_file and (columns is None or name in columns)
    }
    names = in_file if columns is None else [name for name in columns if name not in in_path]
    return list(names), in_path


class TableWriter(FileWriter):
    """Writes one parquet file, published when the block ends well.

    ``schema``: the rows' columns, :func:`stored` of which the file gets. ``options``: of
    ``pyarrow.parquet.ParquetWriter``.
    """

    def __init__(self, path: Path, schema: pa.Schema, **options: Any) -> None:
        super().__init__()
        self._schema = stored(schema, path)
        beside = self._stack.enter_context(atomic_path(path))
        self._writer = self._stack.enter_context(
            pq.ParquetWriter(beside, self._schema, compression="zstd", **options)
        )

    def write(self, rows: pa.Table, row_group: int = ROW_GROUP) -> None:
        """Write rows as one row group, or several of at most ``row_group`` rows."""
        if rows.num_rows:
            self._writer.write_table(rows.select(self._schema.names), row_group_size=row_group)

    def note(self, key: bytes, text: str) -> None:
        """Put a text into the file's metadata."""
        self._writer.add_key_value_metadata({key: text.encode()})


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an npy file, atomically."""
    with atomic_path(path) as beside, beside.open("wb") as stream:
        np.save(stream, array)


def write_table(path: Path, table: pa.Table, **options: Any) -> None:
    """Publish a whole table as one file."""
    with TableWriter(path, table.schema, **options) as writer:
        writer.write(table)


class PartsWriter(FileWriter):
    """Writes rows into a folder's numbered parts, :data:`ROWS_PER_PART` to each but the last.

    At least one part is written, so that a reader finds the schema of a table without rows. Parts
    from number ``first`` on that are in the folder already are replaced, or deleted where there are
    more. A part appears when it is full: a killed writer's parts are whole, and do not say that
    more were to come.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        *,
        rows: int = ROWS_PER_PART,
        row_group: int = ROW_GROUP,
        first: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        self._folder, self._schema, self._rows, self._options = folder, schema, rows, options
        self._first, self._row_group = first, row_group
        self._waiting: list[pa.Table] = []
        self._n = 0
        self._writer: TableWriter | None = None
        self._in_part = 0
        self.parts: list[Path] = []

    def _finish(self) -> None:
        self._flush()
        if not self.parts:
            self._open()
        self._close()
        earlier = {part_path(self._folder, number) for number in range(self._first)}
        for stale in set(self._folder.glob(PARTS)) - earlier - set(self.parts):
            stale.unlink()

    def write(self, rows: pa.Table) -> None:
        """Add rows; they reach the file in row groups of ``row_group`` rows."""
        while rows.num_rows:
            # A row group ends where its part does.
            room = min(ROW_GROUP, self._rows - self._in_part) - self._n
            self._waiting.append(rows.slice(0, room))
            self._n += self._waiting[-1].num_rows
            rows = rows.slice(room)
            if self._n == min(ROW_GROUP, self._rows - self._in_part):
                self._flush()

    def _flush(self) -> None:
        if not self._n:
            return
        writer = self._writer or self._open()
        writer.write(pa.concat_tables(self._waiting), self._row_group)
        self._in_part += self._n
        self._waiting, self._n = [], 0
        if self._in_part >= self._rows:
            self._close()

    def _open(self) -> TableWriter:
        path = part_path(self._folder, self._first + len(self.parts))
        self._writer = self._stack.enter_context(TableWriter(path, self._schema, **self._options))
        self.parts.append(path)
        return self._writer

    def _close(self) -> None:
        self._stack.close()
        self._writer, self._in_part = None, 0


class VectorsWriter(FileWriter):
    """Writes one npy file of float16 vectors whose number is known only at the end.

    (n, ``dim``); the file is published when the block ends well.
    """

    def __init__(self, path: Path, dim: int) -> None:
        super().__init__()
        self._dim, self._n = dim, 0
        self._file = self._stack.enter_context(
            self._stack.enter_context(atomic_path(path)).open("wb")
        )
        self._write_header()

    def _finish(self) -> None:
        self._file.seek(0)
        self._write_header()

    def write(self, vectors: NDArray[Any]) -> None:
        """Add vectors, (m, ``dim``)."""
        self._file.write(np.ascontiguousarray(vectors, dtype=np.float16).tobytes())
        self._n += len(vectors)

    def _write_header(self) -> None:
        # numpy pads the header for a first dimension that grows in place.
        header = {"descr": "<f2", "fortran_order": False, "shape": (self._n, self._dim)}
        np.lib.format.write_array_header_1_0(self._file, header)
