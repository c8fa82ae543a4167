"""Search: a vector in, the nearest samples with their metadata out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.knn.files import IndexMismatchError, IndexSummary, open_index
from laion_assets.knn.subset import MODALITIES, Modality, part_path

_COLUMNS: Final = (
    "SAMPLE_ID",
    "URL",
    "TEXT",
    "HEIGHT",
    "WIDTH",
    "LICENSE",
    "NSFW",
    "similarity",
    "LANGUAGE",
    "page_url",
    "key",
)


class StaleIndexError(RuntimeError):
    """The subset was made anew after the index: its rows are other samples now."""


_GROUPS_KEPT: Final = 256
"""Row groups of `ids.parquet` in memory; one takes some 2 MB."""


@dataclass(frozen=True)
class Place:
    """Where a row's sample is: row ``part_row`` of a part of the segment's subset."""

    crawl: str
    segment: str
    part: int
    part_row: int
    sample_id: int


@dataclass(frozen=True)
class Hit:
    """One result. ``score`` is its cosine with the query, ``similarity`` that of its own pair."""

    rank: int
    score: float
    sample_id: int
    url: str
    text: str
    similarity: float
    nsfw: str
    license: str
    language: str
    width: int
    height: int
    page_url: str
    crawl: str
    segment: str
    key: str


class Searcher:
    """Search an index folder; vectors are memory-mapped, metadata is read for the hits alone.

    ``subset_of(crawl, segment)`` gives the folder of a segment's `filtered_subset`.
    """

    def __init__(self, index_dir: Path, subset_of: Callable[[str, str], Path]) -> None:
        self.summary = IndexSummary.read(index_dir)
        self._ids = _Ids(index_dir / "ids.parquet")
        self._subset_of = subset_of
        self._indices = {modality: open_index(index_dir, modality) for modality in MODALITIES}
        for modality, index in self._indices.items():
            if index.ntotal != self.summary.n:
                raise IndexMismatchError(
                    f"{index_dir}: {index.ntotal} {modality} vectors, "
                    f"but index.json says {self.summary.n}"
                )

    def search(self, vector: npt.ArrayLike, k: int = 10, modality: Modality = "image") -> list[Hit]:
        """The ``k`` nearest images or texts to a ``(d,)`` vector of any length but zero.

        Raises ``ValueError`` for a vector of another shape or without direction, and
        :class:`StaleIndexError` if a hit's row in the subset holds another sample.
        """
        query = np.asarray(vector, dtype=np.float32)
        if query.shape != (self.summary.d,):
            raise ValueError(
                f"the index ({self.summary.model}) holds vectors of shape ({self.summary.d},), "
                f"not {query.shape}"
            )
        scores, rows = self.nearest(query[None], k, modality)
        found = [(float(s), int(r)) for s, r in zip(scores[0], rows[0], strict=True) if r >= 0]
        places = self.places([row for _, row in found])
        samples = self._samples(places)
        return [
            _hit(rank, score, place, sample)
            for rank, ((score, _), place, sample) in enumerate(
                zip(found, places, samples, strict=True), start=1
            )
        ]

    def nearest(
        self, vectors: npt.ArrayLike, k: int = 10, modality: Modality = "image"
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Of many ``(q, d)`` vectors at once, without metadata: scores and rows ``(q, k)``, best
        first, -1 where there are no more. Raises ``ValueError`` as :meth:`search` does."""
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        queries = np.asarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.summary.d:
            raise ValueError(f"queries must be of the shape (q, {self.summary.d})")
        norms = np.linalg.norm(queries, axis=1, keepdims=True)
        if not (np.isfinite(norms).all() and (norms > 0).all()):
            raise ValueError("the query vector has no direction (zero or not finite)")
        scores, rows = self._indices[modality].search(
            queries / norms, min(k, max(1, self.summary.n))
        )
        return scores, rows

    def places(self, rows: Sequence[int]) -> list[Place]:
        """Where each row's sample is, and its SAMPLE_ID. Raises ``IndexError`` beyond the rows."""
        return [self._ids.place(row) for row in rows]

    def _samples(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        """Each place's row of the subset."""
        by_part: dict[tuple[str, str, int], list[Place]] = {}
        for place in places:
            by_part.setdefault((place.crawl, place.segment, place.part), []).append(place)
        samples: dict[Place, dict[str, Any]] = {}
        for (crawl, segment, number), wanted in by_part.items():
            path = part_path(self._subset_of(crawl, segment), number)
            try:
                read = rows_at(path, [place.part_row for place in wanted], _COLUMNS)
            except (FileNotFoundError, IndexError) as error:
                raise StaleIndexError(f"{path} has not the rows that were indexed") from error
            for place in wanted:
                sample = samples[place] = read[place.part_row]
                if sample["SAMPLE_ID"] != place.sample_id:
                    raise StaleIndexError(
                        f"{path} row {place.part_row} is sample {sample['SAMPLE_ID']}, the index "
                        f"holds {place.sample_id}: make the index anew"
                    )
        return [samples[place] for place in places]


class _Ids:
    """`ids.parquet`, kept open: the folder may be replaced. Row groups read last are kept."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        groups = self._file.metadata
        rows = [groups.row_group(group).num_rows for group in range(groups.num_row_groups)]
        self._starts = np.cumsum([0, *rows])
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def place(self, row: int) -> Place:
        if not 0 <= row < self._starts[-1]:
            raise IndexError(f"there is no row {row}")
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        at = row - int(self._starts[group])
        columns = ("crawl", "segment", "part", "part_row", "SAMPLE_ID")
        with self._lock:
            if group not in self._groups:
                self._groups[group] = self._file.read_row_group(group, list(columns))
                if len(self._groups) > _GROUPS_KEPT:
                    self._groups.popitem(last=False)
            table = self._groups[group]
        return Place(*(table[name][at].as_py() for name in columns))


def _hit(rank: int, score: float, place: Place, sample: Mapping[str, Any]) -> Hit:
    return Hit(
        rank=rank,
        score=score,
        sample_id=sample["SAMPLE_ID"],
        url=sample["URL"],
        text=sample["TEXT"],
        similarity=sample["similarity"],
        nsfw=sample["NSFW"],
        license=sample["LICENSE"],
        language=sample["LANGUAGE"],
        width=sample["WIDTH"],
        height=sample["HEIGHT"],
        page_url=sample["page_url"],
        crawl=place.crawl,
        segment=place.segment,
        key=sample["key"],
    )


def rows_at(
    path: Path, rows: Sequence[int], columns: Sequence[str] | None = None
) -> dict[int, dict[str, Any]]:
    """Rows of a parquet file by number, reading only the row groups that hold them.

    Raises ``IndexError`` for a row that the file has not.
    """
    wanted = sorted(set(rows))
    found: dict[int, dict[str, Any]] = {}
    with pq.ParquetFile(path) as file:
        if wanted and not 0 <= wanted[0] <= wanted[-1] < file.metadata.num_rows:
            raise IndexError(f"{path} has {file.metadata.num_rows} rows, not {wanted[-1] + 1}")
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            here = [row for row in wanted if first <= row < last]
            if here:
                table = file.read_row_group(group, columns=list(columns) if columns else None)
                taken = table.take(pa.array([row - first for row in here]))
                found.update(zip(here, taken.to_pylist(), strict=True))
            first = last
    return found
