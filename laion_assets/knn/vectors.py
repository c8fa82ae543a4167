"""Rows of files of vectors, read without keeping a file open.

An index of 10,000 segments has its vectors in 20,000 files, and a query wants a row or two of a
hundred of them. Opening a file, reading these rows and closing it takes some 15 microseconds; what
is kept is only where a file's rows begin.
"""

from __future__ import annotations

import io
import os
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from laion_assets.files import Identity, identity
from laion_assets.knn.subset import SubsetError

_HEADERS: Final = 65_536
"""Files of which it is kept where their rows begin; some 300 bytes each."""
_HEADER_BYTES: Final = 4_096

Ints = npt.NDArray[np.int64]


class Header(NamedTuple):
    """Shape of a file of vectors, and where its rows begin; ``seen`` is the file's identity."""

    seen: Identity
    start: int
    dtype: np.dtype[Any]
    rows: int
    d: int


class VectorFiles:
    """Reads npy files of vectors, ``(rows, d)``. Several threads may share it."""

    def __init__(self) -> None:
        self._headers: LRUCache[str, Header] = LRUCache(_HEADERS)
        self._lock = Lock()

    def header(self, path: str) -> Header:
        """Header of the file as it is now.

        Raises ``FileNotFoundError``, and :class:`SubsetError` for a file that is not of vectors.
        """
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self._header(handle, path)
        finally:
            os.close(handle)

    def read(self, path: str, rows: Ints) -> tuple[Header, npt.NDArray[Any]]:
        """The file's header and some of its rows, ``(n, d)``; ascending rows are read fastest.

        Raises as :meth:`header` does, and :class:`SubsetError` for a row that the file does not
        have.
        """
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            header = self._header(handle, path)
            out = np.empty((len(rows), header.d), header.dtype)
            width = out.itemsize * header.d
            into = out.reshape(-1).view(np.uint8)
            # Rows that follow one another are read at once. Most often there is one.
            gaps = np.flatnonzero(np.diff(rows) != 1) + 1 if len(rows) > 1 else rows[:0]
            ends = [*gaps.tolist(), len(rows)]
            first = 0
            for last in ends:
                here = into[first * width : last * width].data
                offset = header.start + int(rows[first]) * width if first < last else 0
                if os.preadv(handle, [here], offset) != len(here):
                    raise SubsetError(f"{path} has {header.rows} rows, not row {rows[last - 1]}")
                first = last
            return header, out
        finally:
            os.close(handle)

    def _header(self, handle: int, path: str) -> Header:
        seen = identity(handle)
        with self._lock:
            known = self._headers.get(path)
        if known is None or known.seen != seen:
            known = _parse(os.pread(handle, _HEADER_BYTES, 0), seen, path)
            with self._lock:
                self._headers[path] = known
        return known


def _parse(begin: bytes, seen: Identity, path: str) -> Header:
    stream = io.BytesIO(begin)
    try:
        np.lib.format.read_magic(stream)
        # Only version 1.0 is written for such short headers.
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise SubsetError(f"{path} is no file of vectors: {error}") from error
    if len(shape) != 2 or fortran or dtype.kind != "f":
        raise SubsetError(f"{path} is no file of vectors: it has {dtype} in the shape {shape}")
    return Header(seen, stream.tell(), dtype, *shape)
