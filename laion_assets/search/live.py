"""The index that is being searched, and its replacement by a newer one under way.

A version keeps its own files open, so it stays whole when the lake puts another folder in its
place. A request holds the version that it began with; when the last such request is done, nothing
refers to the old version any more, and its memory maps and files are closed with it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.knn.files import IndexSummary
from laion_assets.knn.search import Searcher
from laion_assets.knn.subset import Modality
from laion_assets.lake import MANIFEST, Manifest
from laion_assets.progress import Log, silent
from laion_assets.search.cache import ByteCache
from laion_assets.search.samples import Place

_ROW_BITS: Final = 32
_TAG_BITS: Final = 20
"""An id is 52 bits: the browser's numbers are exact to 53."""
_OPENING_ATTEMPTS: Final = 5
_IDS: Final = ["row", "SAMPLE_ID", "crawl", "segment", "part", "part_row"]


class IndexUnavailableError(RuntimeError):
    """There is no index that can be searched; the message says why."""


class _Names:
    """A column of few distinct texts."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        encoded = column.combine_chunks().dictionary_encode()
        self._codes: npt.NDArray[np.int32] = encoded.indices.to_numpy()
        self._texts: list[str] = encoded.dictionary.to_pylist()

    def __getitem__(self, row: int) -> str:
        return self._texts[int(self._codes[row])]


class _IdBlock:
    """A row group of `ids.parquet`."""

    def __init__(self, file: pq.ParquetFile, group: int) -> None:
        table = file.read_row_group(group, columns=_IDS)
        self.rows: npt.NDArray[np.int64] = table["row"].to_numpy()
        self._sample_ids = table["SAMPLE_ID"].to_numpy()
        self._parts = table["part"].to_numpy()
        self._part_rows = table["part_row"].to_numpy()
        self._crawls, self._segments = (_Names(table[name]) for name in ("crawl", "segment"))
        self.nbytes = int(table.nbytes)

    def place(self, row: int) -> Place | None:
        at = int(np.searchsorted(self.rows, row))
        if at == len(self.rows) or self.rows[at] != row:
            return None
        return Place(
            self._crawls[at],
            self._segments[at],
            int(self._parts[at]),
            int(self._part_rows[at]),
            int(self._sample_ids[at]),
        )


class IndexVersion:
    """One published index, open. Safe to search from several threads.

    Raises ``OSError``, ``ValueError`` or faiss' ``RuntimeError`` for a folder that is no whole
    index.
    """

    def __init__(self, index_dir: Path, name: str, cache: ByteCache) -> None:
        self.name = name
        self.tag = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % 2**_TAG_BITS
        self._searcher = Searcher(index_dir, _no_subset)
        self._file = pq.ParquetFile(index_dir / "ids.parquet")
        self._reading = threading.Lock()
        self._cache = cache
        self._key = object()
        starts, start = [], 0
        for group in range(self._file.num_row_groups):
            about = self._file.metadata.row_group(group)
            statistics = about.column(0).statistics
            starts.append(statistics.min if statistics and statistics.has_min_max else start)
            start += about.num_rows
        self._starts = np.asarray(starts, np.int64)

    @property
    def summary(self) -> IndexSummary:
        return self._searcher.summary

    def nearest(self, vector: npt.ArrayLike, k: int, over: Modality) -> list[tuple[float, int]]:
        """``(score, row)``, best first. Raises ``ValueError`` for a vector that cannot be asked."""
        return self._searcher.nearest(vector, k, over)

    def place(self, row: int | None) -> Place | None:
        """None for a row that the index has not."""
        group = -1 if row is None else int(np.searchsorted(self._starts, row, side="right")) - 1
        if row is None or group < 0:
            return None
        return self._cache.get((self._key, group), lambda: self._block(group)).place(row)

    def _block(self, group: int) -> _IdBlock:
        with self._reading:
            return _IdBlock(self._file, group)

    def id_of(self, row: int) -> int:
        """A number for a row of this version; that of another version is told apart by its tag."""
        return self.tag << _ROW_BITS | row

    def row_of(self, number: int) -> int | None:
        """The row of :meth:`id_of`; None for another version's."""
        tag, row = number >> _ROW_BITS, number & (2**_ROW_BITS - 1)
        return row if tag == self.tag else None


def _no_subset(crawl: str, segment: str) -> Path:
    raise AssertionError(f"metadata of {crawl}|{segment} is not read by this searcher")


class LiveIndex:
    """The newest version of an index folder.

    ``accept`` raises ``ValueError`` for a version that must not be served, such as one made with
    another model; the version before then stays. Raises :class:`IndexUnavailableError` if the
    folder holds no index to begin with.
    """

    def __init__(
        self,
        index_dir: Path,
        cache: ByteCache,
        accept: Callable[[IndexVersion], None] = lambda _: None,
        log: Log = silent,
    ) -> None:
        self._index_dir = index_dir
        self._cache = cache
        self._accept = accept
        self._log = log
        self.swaps = 0
        self.problem: str | None = None
        """Why the folder's newest version is not the current one."""
        try:
            self._seen, self._current = self._open()
        except (OSError, ValueError, RuntimeError) as error:
            raise IndexUnavailableError(f"{index_dir} cannot be searched: {error}") from error

    @property
    def current(self) -> IndexVersion:
        return self._current

    def refresh(self) -> bool:
        """Take what has been published since; True if it is another version than before.

        Not to be called from two threads at once.
        """
        try:
            if self._identity() == self._seen:
                self.problem = None
                return False
            seen, version = self._open()
        except (OSError, ValueError, RuntimeError) as error:
            problem = f"the new index cannot be served: {error}"
            if problem != self.problem:
                self._log(problem)
            self.problem = problem
            return False
        self._seen, self.problem = seen, None
        if version.name == self._current.name:
            return False
        self._current = version
        self.swaps += 1
        self._log(f"now searching {version.name}: {version.summary.n:,} samples")
        return True

    def _identity(self) -> tuple[int, int, int]:
        manifest = self._index_dir / MANIFEST
        about = (manifest if manifest.exists() else self._index_dir / "index.json").stat()
        return about.st_dev, about.st_ino, about.st_mtime_ns

    def _open(self) -> tuple[tuple[int, int, int], IndexVersion]:
        for attempt in range(_OPENING_ATTEMPTS):
            seen = self._identity()
            try:
                version = IndexVersion(self._index_dir, self._name(seen), self._cache)
            except FileNotFoundError:
                # The folder may have been replaced and deleted meanwhile.
                if self._identity() == seen or attempt == _OPENING_ATTEMPTS - 1:
                    raise
                continue
            if self._identity() == seen:
                self._accept(version)
                return seen, version
        raise ValueError("it was replaced again and again while it was being opened")

    def _name(self, seen: tuple[int, int, int]) -> str:
        """The published data version; of a plain folder, the times of its files."""
        if (self._index_dir / MANIFEST).exists():
            return Manifest.read(self._index_dir).data_version
        return hashlib.sha256(repr(seen).encode()).hexdigest()[:32]
