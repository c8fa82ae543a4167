"""The rows of an index: their samples, the samples' places in the subsets, and their vectors.

Search does not belong here; see :mod:`laion_assets.knn.open_index`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from laion_assets.files import Identity
from laion_assets.knn.files import IndexSummary, SegmentRows, read_sample_ids
from laion_assets.knn.samples import SamplePlace
from laion_assets.knn.subset import (
    Modality,
    SubsetError,
    SubsetPart,
    Subsets,
    published_digests,
    read_whole,
    subset_folder,
    subset_parts,
)
from laion_assets.knn.vectors import VectorFiles

Ints = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)

_KEPT_BYTES: Final = 2**27
"""Memory for what is known of the segments' vectors; 10,000 segments in their places take 10 MB."""
_READING_ATTEMPTS: Final = 3


class IndexRows:
    """The sample behind each row of an index folder, and the segment and part that have it.

    Rows are counted through all index runs. Raises :class:`.files.IndexMismatchError` if
    a run's ids are not as many as `index.json` says.
    """

    def __init__(self, index_dir: Path, summary: IndexSummary) -> None:
        self.folder = index_dir
        self._ids = [read_sample_ids(index_dir / run.folder, run) for run in summary.runs]
        self.firsts = np.cumsum([0, *map(len, self._ids)])
        """First row of each run, and the number of all rows."""
        self.segments = [segment for run in summary.runs for segment in run.segments]
        self.starts = np.cumsum([0, *(segment.rows for segment in self.segments)])
        """First row of each of the segments, and the number of all rows."""

    def segments_of(self, rows: Ints) -> Ints:
        """Position in ``segments`` of those that have the rows."""
        return self.starts.searchsorted(rows, side="right") - 1

    def ids_of_segment(self, at: int) -> Ints:
        """SAMPLE_IDs of a segment as it was indexed, ``(rows,)``."""
        start = int(self.starts[at])
        run = int(self.firsts.searchsorted(start, side="right")) - 1
        first = start - int(self.firsts[run])
        ids: Ints = np.asarray(self._ids[run][first : first + self.segments[at].rows])
        return ids

    def place(self, row: int) -> SamplePlace:
        """Place of a row's sample. Raises ``IndexError`` for a row beyond the last one."""
        if not 0 <= row < self.firsts[-1]:
            raise IndexError(f"there is no row {row}")
        run = int(self.firsts.searchsorted(row, side="right")) - 1
        sample_id = int(self._ids[run][row - self.firsts[run]])
        at = int(self.starts.searchsorted(row, side="right")) - 1
        segment, left = self.segments[at], int(row - self.starts[at])
        for part in segment.parts:
            if left < part.rows:
                break
            left -= part.rows
        return SamplePlace(segment.crawl, segment.segment, part.number, left, sample_id)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where the vectors of a segment are now.

    ``files`` are the parts' files with their identities, ``ends`` the number of rows up to the end
    of each. ``at`` are the rows, counted through all parts, of the samples that were indexed, -1
    for one that is gone; None if all are where they were.
    """

    files: tuple[tuple[str, Identity], ...]
    ends: Ints
    at: npt.NDArray[Any] | None = None

    @property
    def nbytes(self) -> int:
        return 512 * len(self.files) + (0 if self.at is None else self.at.nbytes)


class RowVectors:
    """The subsets' own vectors of an index's rows. No file stays open.

    A subset may have been replaced since it was indexed; its samples are then found by their
    SAMPLE_IDs. Several threads may read at once.
    """

    def __init__(self, rows: IndexRows, subsets: Subsets, d: int) -> None:
        self.stale: set[tuple[str, str]] = set()
        """``(crawl, segment)`` of each subset that was found to be newer than the index."""
        self._rows = rows
        self._subsets = subsets
        self._d = d
        self._files = VectorFiles()
        self._kept: LRUCache[tuple[Modality, int], _Stored] = LRUCache(
            _KEPT_BYTES, lambda stored: min(_KEPT_BYTES, stored.nbytes)
        )
        self._lock = Lock()

    def ascending(
        self, rows: Ints, modality: Modality
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_] | None]:
        """Vectors ``(n, d)`` of ascending rows, and which of them are gone; None if none is.

        Each file is opened once. Raises :class:`SubsetError` for a damaged one, or one that does
        not fit its rows.
        """
        out = np.empty((len(rows), self._d), dtype=np.float16)
        gone: npt.NDArray[np.bool_] | None = None
        segments = self._rows.segments_of(rows)
        local = rows - self._rows.starts[segments]
        ends = [*(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(rows)]
        first = 0
        for last in ends if len(rows) else ():
            here = slice(first, last)
            lost = self._of_segment(int(segments[first]), local[here], modality, out[here])
            if lost is not None:
                if gone is None:
                    gone = np.zeros(len(rows), dtype=bool)
                gone[here] = lost
            first = last
        return out, gone

    def _of_segment(
        self, segment: int, rows: Ints, modality: Modality, out: npt.NDArray[np.float16]
    ) -> npt.NDArray[np.bool_] | None:
        """Read vectors of a segment's rows into ``out``; return which are gone."""
        key, damage = (modality, segment), None
        for _ in range(_READING_ATTEMPTS):
            with self._lock:
                stored = self._kept.get(key)
            if stored is None:
                stored = self._look(segment, modality)
                if stored is None:
                    break  # not kept: the subset may come back
                with self._lock:
                    self._kept[key] = stored
            at = rows if stored.at is None else stored.at[rows]
            try:
                if self._read(stored, at, out):
                    return None if stored.at is None or (at >= 0).all() else at < 0
            except FileNotFoundError:
                pass
            except SubsetError as error:
                damage = error
            with self._lock:  # it was replaced since it was looked at
                self._kept.pop(key, None)
        if damage:
            raise damage
        self._note_stale(segment)
        out[:] = 0
        return np.ones(len(rows), dtype=bool)

    def _read(self, stored: _Stored, at: Ints, out: npt.NDArray[np.float16]) -> bool:
        """Read rows, counted through all files, into ``out``; False if a file is another now."""
        if stored.at is None and len(stored.files) == 1:
            path, seen = stored.files[0]
            header, out[:] = self._files.read(path, at)
            return header.seen == seen
        files = stored.ends.searchsorted(at, side="right")
        for number in range(len(stored.files)):
            which = np.flatnonzero((files == number) & (at >= 0))
            if not len(which):
                continue
            path, seen = stored.files[number]
            start = int(stored.ends[number - 1]) if number else 0
            header, vectors = self._files.read(path, at[which] - start)
            if header.seen != seen:
                return False
            out[which] = vectors
        out[at < 0] = 0
        return True

    def _look(self, segment: int, modality: Modality) -> _Stored | None:
        """Find a segment's vectors; None if they are missing. Raises :class:`SubsetError`."""
        indexed = self._rows.segments[segment]
        folder = subset_folder(self._subsets, indexed.crawl, indexed.segment)
        stored = read_whole(
            folder,
            lambda: (
                self._as_indexed(folder, indexed, modality)
                or self._by_ids(folder, segment, modality)
            ),
        )
        if stored is not None and stored.at is not None:
            self._note_stale(segment)
        return stored

    def _as_indexed(self, folder: Path, segment: SegmentRows, modality: Modality) -> _Stored | None:
        """The vectors' files, if the subset's manifest says that they are those indexed.

        That costs a tenth of reading the SAMPLE_IDs.
        """
        if not all(part.digest(modality) for part in segment.parts):
            return None
        published = published_digests(folder)
        paths = []
        for part in segment.parts:
            path = SubsetPart(folder, part.number).vectors_path(modality)
            name = path.relative_to(folder).as_posix()
            if not published.get(name, "").startswith(part.digest(modality)):
                return None
            paths.append(path)
        return self._stored(paths, [part.rows for part in segment.parts])

    def _by_ids(self, folder: Path, segment: int, modality: Modality) -> _Stored:
        """The vectors' files and, by SAMPLE_ID, the rows in them of what was indexed."""
        parts = subset_parts(folder)
        ids = [part.sample_ids() for part in parts]
        present = np.concatenate(ids) if ids else np.empty(0, np.int64)
        moved = _moved(self._rows.ids_of_segment(segment), present)
        paths = [part.vectors_path(modality) for part in parts]
        return self._stored(paths, [len(some) for some in ids], moved)

    def _stored(
        self, paths: list[Path], rows: list[int], at: npt.NDArray[Any] | None = None
    ) -> _Stored:
        files = []
        for path, n in zip(paths, rows, strict=True):
            header = self._files.header(str(path))
            if (header.rows, header.d) != (n, self._d):
                raise SubsetError(
                    f"{path} has vectors of the shape ({header.rows}, {header.d}), "
                    f"not ({n}, {self._d})"
                )
            files.append((str(path), header.seen))
        return _Stored(tuple(files), np.cumsum(rows, dtype=np.int64), at)

    def _note_stale(self, segment: int) -> None:
        of = self._rows.segments[segment]
        name = (of.crawl, of.segment)
        if name not in self.stale:
            self.stale.add(name)
            logger.warning(
                "the subset of %s|%s is newer than the index %s: samples that left it are no "
                "longer found, and new ones are found once the index is rebuilt",
                *name,
                self._rows.folder,
            )


def _moved(indexed: Ints, present: Ints) -> npt.NDArray[Any] | None:
    """Row of each indexed SAMPLE_ID among the present ones, -1 if it is gone.

    None if nothing has moved.
    """
    if np.array_equal(indexed, present):
        return None
    if not len(present):
        return np.full(len(indexed), -1, np.int32)
    order = np.argsort(present)
    guess = order[np.searchsorted(present, indexed, sorter=order).clip(max=len(present) - 1)]
    return np.where(present[guess] == indexed, guess, -1).astype(np.int32)
