"""Inverted lists in faiss's own file format: mapped for search, merged list by list.

A file says which row has which code in which cell, and holds nothing of the codec itself. A
segment's file is thus as large as the segment, however large the codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from laion_assets.files import atomic_path

_ID_BYTES: Final = 8
_MAGIC: Final = b"ilar"

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

    ``sources`` are files with the new numbers of their rows. Memory: one cell at a time. Raises
    ``ValueError`` if the files differ in their number of cells or the size of their codes.
    """
    shapes = {(len(file.sizes), file.code_size) for file, _ in sources}
    if len(shapes) != 1:
        raise ValueError(f"inverted lists of different (cells, code size): {sorted(shapes)}")
    ((cells, code_size),) = shapes
    sizes = sum((_kept_sizes(file, rows) for file, rows in sources), np.zeros(cells, np.int64))
    with atomic_path(path) as beside, beside.open("wb") as out:
        out.write(_MAGIC)
        np.array([cells, code_size], np.uint64).tofile(out)
        out.write(b"full")
        np.array([cells, *sizes], np.uint64).tofile(out)
        for number in np.flatnonzero(sizes):
            _write_cell(out, sources, int(number))
    return int(sizes.sum())


def _kept_sizes(file: ListsFile, rows: Renumbering) -> Ints:
    if not rows.leaves_out:
        return file.sizes
    kept = [int((rows(file.cell(number)[1]) >= 0).sum()) for number in range(len(file.sizes))]
    return np.array(kept, dtype=np.int64)


def _write_cell(
    out: BinaryIO, sources: Sequence[tuple[ListsFile, Renumbering]], number: int
) -> None:
    new_rows = []
    for file, rows in sources:
        if not file.sizes[number]:
            continue
        codes, old = file.cell(number)
        new = rows(old)
        keep = new >= 0
        # A cell's data in the file is only byte-aligned: numpy copies where it must.
        out.write(np.ascontiguousarray(codes if keep.all() else codes[keep]).data)
        new_rows.append(new[keep])
    out.write(np.concatenate(new_rows).astype(np.int64).data)
