"""The rows of an index: their samples, the samples' places in the subsets, and their vectors.

Search does not belong here; see :mod:`laion_assets.knn.open_index`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from laion_assets.files import open_files
from laion_assets.knn.files import IndexSummary, SegmentRows, read_sample_ids
from laion_assets.knn.samples import SamplePlace
from laion_assets.knn.subset import (
    Modality,
    SubsetError,
    SubsetPart,
    Subsets,
    Vectors,
    read_whole,
    subset_folder,
)

Ints = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)

_OPEN_PARTS: Final = 4_096
"""Parts of subsets that are kept mapped, if that many files may be open."""


class IndexRows:
    """The sample behind each row of an index folder, and the part of a subset that has it.

    Rows are counted through all index runs. Raises :class:`.files.IndexMismatchError` if
    a run's ids are not as many as `index.json` says.
    """

    def __init__(self, index_dir: Path, summary: IndexSummary) -> None:
        self.folder = index_dir
        self.firsts = np.cumsum([0, *(run.rows for run in summary.runs)])
        """First row of each run, and the number of all rows."""
        self._ids = [read_sample_ids(index_dir / run.folder, run) for run in summary.runs]
        self.parts: list[tuple[SegmentRows, int]] = []
        """Each part's segment and number, in the order of the rows: found by bisection."""
        starts = []
        for first, run in zip(self.firsts, summary.runs, strict=False):
            start = int(first)
            for segment in run.segments:
                for number, rows in segment.parts:
                    self.parts.append((segment, number))
                    starts.append(start)
                    start += rows
        self.starts = np.array(starts, dtype=np.int64)
        """First row of each part."""
        self.sizes: list[int] = np.diff(self.starts, append=self.firsts[-1]).tolist()
        """Number of rows of each part."""

    def part_of(self, row: int) -> int:
        """Position in ``parts`` of the part that has a row."""
        return int(self.starts.searchsorted(row, side="right")) - 1

    def ids_of_part(self, part: int) -> Ints:
        """SAMPLE_IDs of a part as it was indexed, ``(rows,)``."""
        start = int(self.starts[part])
        run = int(np.searchsorted(self.firsts, start, side="right")) - 1
        first = start - int(self.firsts[run])
        ids: Ints = np.asarray(self._ids[run][first : first + self.sizes[part]])
        return ids

    def place(self, row: int) -> SamplePlace:
        """Place of a row's sample. Raises ``IndexError`` for a row beyond the last one."""
        if not 0 <= row < self.firsts[-1]:
            raise IndexError(f"there is no row {row}")
        part = self.part_of(row)
        run = int(np.searchsorted(self.firsts, row, side="right")) - 1
        segment, number = self.parts[part]
        sample_id = int(self._ids[run][row - self.firsts[run]])
        part_row = int(row - self.starts[part])
        return SamplePlace(segment.crawl, segment.segment, number, part_row, sample_id)


@dataclass(frozen=True)
class _Stored:
    """Vectors of a part as it is now.

    ``at`` are the rows in it of the samples that were indexed, -1 for one that is gone; None if
    all are where they were.
    """

    vectors: Vectors
    at: Ints | None = None


class RowVectors:
    """The subsets' own vectors of an index's rows, memory-mapped part by part.

    A part may have been replaced since it was indexed; its samples are then found by their
    SAMPLE_IDs. Several threads may read at once.
    """

    def __init__(self, rows: IndexRows, subsets: Subsets, d: int) -> None:
        self.stale: set[tuple[str, str]] = set()
        """``(crawl, segment)`` of each subset that was found to be newer than the index."""
        self._rows = rows
        self._subsets = subsets
        self._d = d
        most_open = min(_OPEN_PARTS, open_files(4 * _OPEN_PARTS) // 4)
        self._kept: LRUCache[tuple[Modality, int], _Stored] = LRUCache(most_open)
        self._lock = Lock()

    def ascending(
        self, rows: Ints, modality: Modality
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_] | None]:
        """Vectors ``(n, d)`` of ascending rows, and which of them are gone; None if none is.

        Each part is visited once.
        """
        out = np.empty((len(rows), self._d), dtype=np.float16)
        gone: npt.NDArray[np.bool_] | None = None
        first = 0
        while first < len(rows):
            part = self._rows.part_of(rows[first])
            stored, start = self._part(part, modality), int(self._rows.starts[part])
            last = first + int(rows[first:].searchsorted(start + self._rows.sizes[part]))
            at = rows[first:last] - start
            if stored.at is not None:
                at = stored.at[at]
                if gone is None:
                    gone = np.zeros(len(rows), dtype=bool)
                gone[first:last] = at < 0
            if len(stored.vectors):
                # clip: numpy needs no copy to undo, and no existing row is out of bounds.
                stored.vectors.take(at, axis=0, out=out[first:last], mode="clip")
            else:
                out[first:last] = 0
            first = last
        return out, gone

    def _part(self, part: int, modality: Modality) -> _Stored:
        key = (modality, part)
        with self._lock:
            known = self._kept.get(key)
        if known is not None:
            return known
        stored = self._read(part, modality)
        if stored is None:
            # Not kept: the part may come back.
            self._note_stale(part)
            nothing = np.empty((0, self._d), dtype=np.float16)
            return _Stored(nothing, np.full(self._rows.sizes[part], -1))
        if stored.at is not None:
            self._note_stale(part)
        with self._lock:
            self._kept[key] = stored
        return stored

    def _read(self, part: int, modality: Modality) -> _Stored | None:
        """Read a part; None if it or its vectors are missing."""
        segment, number = self._rows.parts[part]
        folder = subset_folder(self._subsets, segment.crawl, segment.segment)
        subset_part = SubsetPart(folder, number)
        try:
            found = read_whole(
                subset_part,
                lambda _: (subset_part.sample_ids(), np.asarray(subset_part.vectors(modality))),
            )
        except SubsetError:
            return None
        if found is None:
            return None
        _, (present, vectors) = found
        return _Stored(vectors, _moved(self._rows.ids_of_part(part), present))

    def _note_stale(self, part: int) -> None:
        segment, _ = self._rows.parts[part]
        name = (segment.crawl, segment.segment)
        if name not in self.stale:
            self.stale.add(name)
            logger.warning(
                "the subset of %s|%s is newer than the index %s: samples that left it are no "
                "longer found, and new ones are found once the index is rebuilt",
                *name,
                self._rows.folder,
            )


def _moved(indexed: Ints, present: Ints) -> Ints | None:
    """Row of each indexed SAMPLE_ID among the present ones, -1 if it is gone.

    None if nothing has moved.
    """
    if np.array_equal(indexed, present):
        return None
    if not len(present):
        return np.full(len(indexed), -1)
    order = np.argsort(present)
    guess = order[np.searchsorted(present, indexed, sorter=order).clip(max=len(present) - 1)]
    return np.where(present[guess] == indexed, guess, -1)
