"""Search: a vector in, the nearest samples with their metadata out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.knn.files import SearchParameters
from laion_assets.knn.runs import Floats, Ints, OpenIndex, Place, StaleIndexError, SubsetOf
from laion_assets.knn.subset import Modality, part_path

__all__ = ["Hit", "Place", "SearchParameters", "Searcher", "StaleIndexError", "rows_at"]

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

    ``subset_of(crawl, segment)`` gives the folder of a segment's `filtered_subset`. Several threads
    may search at once. A searcher keeps the index that it opened, also when the folder is replaced.
    """

    def __init__(self, index_dir: Path, subset_of: SubsetOf) -> None:
        self.index = OpenIndex(index_dir, subset_of)
        self.summary = self.index.summary
        self._subset_of = subset_of

    def search(
        self,
        vector: npt.ArrayLike,
        k: int = 10,
        modality: Modality = "image",
        parameters: SearchParameters | None = None,
    ) -> list[Hit]:
        """The ``k`` nearest images or texts to a ``(d,)`` vector of any length but zero.

        ``parameters`` instead of those recorded in the index. Raises ``ValueError`` for a vector of
        another shape or without direction, and :class:`StaleIndexError` if a hit's row in the
        subset holds another sample.
        """
        query = np.asarray(vector, dtype=np.float32)
        if query.shape != (self.summary.d,):
            raise ValueError(
                f"the index ({self.summary.model}) holds vectors of shape ({self.summary.d},), "
                f"not {query.shape}"
            )
        scores, rows = self.nearest(query[None, :], k, modality, parameters)
        there = rows[0] >= 0
        return self.hits(rows[0][there], scores[0][there])

    def nearest(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        modality: Modality = "image",
        parameters: SearchParameters | None = None,
    ) -> tuple[npt.NDArray[np.float32], Ints]:
        """Of many ``(q, d)`` vectors at once, without metadata: scores and rows ``(q, k)``, best
        first, -inf and -1 where there are no more. Raises ``ValueError`` as :meth:`search` does."""
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        queries = np.asarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.summary.d:
            raise ValueError(f"queries must be of the shape (q, {self.summary.d})")
        norms = np.linalg.norm(queries, axis=1, keepdims=True)
        if not (np.isfinite(norms).all() and (norms > 0).all()):
            raise ValueError("the query vector has no direction (zero or not finite)")
        found = min(k, max(1, self.summary.n))
        return self.index.nearest(queries / norms, found, modality, parameters=parameters)

    def hits(self, rows: Sequence[int] | Ints, scores: Sequence[float] | Floats) -> list[Hit]:
        """Rows and scores with their samples' metadata, ranked as given."""
        places = self.places(rows)
        samples = self._samples(places)
        return [
            _hit(rank, float(score), place, sample)
            for rank, (score, place, sample) in enumerate(
                zip(scores, places, samples, strict=True), start=1
            )
        ]

    def reconstruct(self, row: int, modality: Modality = "image") -> npt.NDArray[np.float16]:
        """The ``(d,)`` vector of a row, as the subset has it."""
        vector: npt.NDArray[np.float16] = self.index.vectors(np.array([row]), modality)[0]
        return vector

    def places(self, rows: Sequence[int] | Ints) -> list[Place]:
        """Where each row's sample is, and its SAMPLE_ID. Raises ``IndexError`` beyond the rows."""
        return self.index.places(rows)

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
