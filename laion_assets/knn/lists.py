"""Inverted lists in faiss's own file format: mapped for search, merged list by list.

A file says which row has which code in which cell, and holds nothing of the codec itself. A
segment's file is thus as large as the segment, however large the codec.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from laion_assets.files import atomic_path

_ID_BYTES: Final = 8
_MAGIC: Final = b"ilar"
_BYTES_AT_ONCE: Final = 2**23
"""Codes that are merged at a time; some ten times as much memory is used."""

Ints = npt.NDArray[np.int64]


def write_lists(lists: Any, path: Path) -> None:
    """Publish faiss ``InvertedLists``."""
    import faiss

    with atomic_path(path) as beside:
        writer = faiss.FileIOWriter(str(beside))
        faiss.write_InvertedLists(lists, writer)
        del writer  # closes the file


def map_lists(path: Path) -> Any:
    """Open a file's lists as memory-mapped faiss ``OnDiskInvertedLists``."""
    import faiss

    reader = faiss.FileIOReader(str(path))
    lists = faiss.downcast_InvertedLists(
        faiss.read_InvertedLists(reader, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    )
    # Its read-ahead starts 32 threads for every query; the system's is enough.
    lists.prefetch_nthread = 0
    return lists


@dataclass(frozen=True)
class ListsFile:
    """A file's lists as memory-mapped numpy arrays; ``sizes`` and ``offsets`` are ``(cells,)``."""

    data: npt.NDArray[np.uint8]
    code_size: int
    sizes: Ints
    offsets: Ints

    @classmethod
    def open(cls, path: Path) -> ListsFile:
        """Open a file. Raises ``ValueError`` for one that :func:`write_lists` did not write."""
        with path.open("rb") as stream:
            if stream.read(4) != _MAGIC:
                raise ValueError(f"{path} holds no inverted lists")
            cells, code_size = (int(value) for value in np.fromfile(stream, np.uint64, 2))
            layout = stream.read(4)
            count = int(np.fromfile(stream, np.uint64, 1)[0])
            stored = np.fromfile(stream, np.uint64, count).astype(np.int64)
            start = stream.tell()
        if layout == b"full":
            sizes = stored
        elif layout == b"sprs":  # (cell, size) of the cells that are not empty
            sizes = np.zeros(cells, dtype=np.int64)
            sizes[stored[::2]] = stored[1::2]
        else:
            raise ValueError(f"{path} has inverted lists of an unknown layout {layout!r}")
        ends = start + np.cumsum(sizes * (code_size + _ID_BYTES))
        offsets = np.concatenate([[start], ends[:-1]]).astype(np.int64)
        data = np.memmap(path, dtype=np.uint8, mode="r")
        if len(data) != ends[-1]:
            raise ValueError(f"{path} has {len(data)} bytes, not {ends[-1]}")
        return cls(data, code_size, sizes, offsets)

    @property
    def n(self) -> int:
        return int(self.sizes.sum())

    def cell(self, number: int) -> tuple[npt.NDArray[np.uint8], Ints]:
        """Codes, ``(n, code_size)`` uint8, and rows, ``(n,)``, of a cell."""
        size, first = int(self.sizes[number]), int(self.offsets[number])
        middle = first + size * self.code_size
        codes = self.data[first:middle].reshape(size, self.code_size)
        return codes, self.data[middle : middle + size * _ID_BYTES].view(np.int64)

    def rows(self, cells: slice) -> tuple[Ints, Ints]:
        """Rows in some cells that follow one another, and each one's cell, both ``(n,)``."""
        if cells.stop - cells.start == 1:  # may be a large one
            ids = self.cell(cells.start)[1]
            return ids, np.full(len(ids), cells.start)
        sizes, which, rank = self._within(cells)
        starts = self.offsets[cells] + sizes * self.code_size
        data = self._bytes(starts[which] + rank * _ID_BYTES, _ID_BYTES)
        return data.view(np.int64)[:, 0], which + cells.start

    def codes(self, cells: slice) -> npt.NDArray[np.uint8]:
        """Codes of these rows, ``(n, code_size)``."""
        _, which, rank = self._within(cells)
        return self._bytes(self.offsets[cells][which] + rank * self.code_size, self.code_size)

    def _within(self, cells: slice) -> tuple[Ints, Ints, Ints]:
        """Sizes of the cells; for each row in them, the position of its cell and its own there."""
        sizes = self.sizes[cells]
        which = np.repeat(np.arange(len(sizes)), sizes)
        return sizes, which, np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)

    def _bytes(self, offsets: Ints, size: int) -> npt.NDArray[np.uint8]:
        return np.asarray(self.data[offsets[:, None] + np.arange(size)])


@dataclass(frozen=True)
class Renumbering:
    """New numbers for rows that stay in order, range by range.

    ``starts`` are the old first rows of the ranges, ``firsts`` the new ones; -1 leaves a range out.
    """

    starts: Ints
    firsts: Ints

    def __call__(self, rows: Ints) -> Ints:
        if not len(self.starts):
            return np.full(rows.shape, -1, np.int64)
        which = np.searchsorted(self.starts, rows, side="right") - 1
        new = rows - self.starts[which] + self.firsts[which]
        return np.where((self.firsts[which] >= 0) & (rows >= 0), new, -1)

    @property
    def leaves_out(self) -> bool:
        return bool((self.firsts < 0).any())


def merge_lists(sources: Sequence[tuple[ListsFile, Renumbering]], path: Path) -> int:
    """Publish the lists of all sources as one file; return its number of vectors.

    ``sources`` are files with the new numbers of their rows. Memory: a hundred megabytes, or one
    cell of one source, at a time. Raises ``ValueError`` if the files differ in their number of
    cells or the size of their codes.
    """
    shapes = {(len(file.sizes), file.code_size) for file, _ in sources}
    if len(shapes) != 1:
        raise ValueError(f"inverted lists of different (cells, code size): {sorted(shapes)}")
    ((cells, code_size),) = shapes
    all_sizes = np.sum([file.sizes for file, _ in sources], axis=0)
    at_once = list(_cells_at_once(all_sizes, code_size))
    sizes = np.zeros(cells, np.int64)
    for file, rows in sources:
        if rows.leaves_out:
            for some in at_once:
                old, cell = file.rows(some)
                sizes += np.bincount(cell[rows(old) >= 0], minlength=cells)
        else:
            sizes += file.sizes
    with atomic_path(path) as beside, beside.open("wb") as out:
        out.write(_MAGIC)
        np.array([cells, code_size], np.uint64).tofile(out)
        out.write(b"full")
        np.array([cells, *sizes], np.uint64).tofile(out)
        for some in at_once:
            if some.stop - some.start == 1:
                _write_cell(out, sources, some.start)
            else:
                _write_cells(out, sources, some, sizes[some])
    return int(sizes.sum())


def _cells_at_once(sizes: Ints, code_size: int) -> Iterator[slice]:
    """Cells that follow one another, with as many codes as are handled at a time."""
    ends = np.cumsum(sizes * code_size)
    first = 0
    while first < len(ends):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(ends.searchsorted(before + _BYTES_AT_ONCE, side="right")))
        yield slice(first, last)
        first = last


def _write_cells(
    out: BinaryIO, sources: Sequence[tuple[ListsFile, Renumbering]], cells: slice, sizes: Ints
) -> None:
    """Write cells that follow one another; ``sizes`` are theirs in the new file."""
    codes, rows, where = [], [], []
    for file, numbers in sources:
        old, cell = file.rows(cells)
        new, its = numbers(old), file.codes(cells)
        kept = new >= 0
        whole = bool(kept.all())
        codes.append(its if whole else its[kept])
        rows.append(new if whole else new[kept])
        where.append(cell if whole else cell[kept])
    order = np.argsort(np.concatenate(where), kind="stable")
    sorted_codes, sorted_rows = np.concatenate(codes)[order], np.concatenate(rows)[order]
    last = 0
    for size in sizes[sizes > 0].tolist():
        first, last = last, last + size
        out.write(sorted_codes[first:last].data)
        out.write(sorted_rows[first:last].data)


def _write_cell(
    out: BinaryIO, sources: Sequence[tuple[ListsFile, Renumbering]], number: int
) -> None:
    """Write one cell, which may be a large one."""
    new_rows = []
    for file, rows in sources:
        codes, old = file.cell(number)
        new = rows(old)
        keep = new >= 0
        # A cell's data in the file is only byte-aligned: numpy copies where it must.
        out.write(np.ascontiguousarray(codes if keep.all() else codes[keep]).data)
        new_rows.append(new[keep])
    out.write(np.concatenate(new_rows).astype(np.int64).data)
