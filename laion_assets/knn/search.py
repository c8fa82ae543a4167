"""Search: a vector in, the nearest samples with their metadata out."""

from __future__ import annotations

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
        self._ids = index_dir / "ids.parquet"
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
        found = self.nearest(vector, k, modality)
        places = rows_at(self._ids, [row for _, row in found])
        samples = self._samples(places)
        return [
            _hit(rank, score, places[row], samples[row])
            for rank, (score, row) in enumerate(found, start=1)
        ]

    def nearest(
        self, vector: npt.ArrayLike, k: int = 10, modality: Modality = "image"
    ) -> list[tuple[float, int]]:
        """``(score, row in ids.parquet)`` of the ``k`` nearest, best first; no metadata is read.

        Raises ``ValueError`` as :meth:`search` does.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        query = self._unit(vector)
        if not self.summary.n:
            return []
        scores, rows = self._indices[modality].search(query, min(k, self.summary.n))
        return [(float(s), int(r)) for s, r in zip(scores[0], rows[0], strict=True) if r >= 0]

    def _unit(self, vector: npt.ArrayLike) -> npt.NDArray[np.float32]:
        query = np.asarray(vector, dtype=np.float32)
        if query.shape != (self.summary.d,):
            raise ValueError(
                f"the index ({self.summary.model}) holds vectors of shape ({self.summary.d},), "
                f"not {query.shape}"
            )
        norm = float(np.linalg.norm(query))
        if not np.isfinite(norm) or norm == 0:
            raise ValueError("the query vector has no direction (zero or not finite)")
        return (query / norm)[None, :]

    def _samples(self, places: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        """Row in the index -> its row of the subset."""
        by_part: dict[tuple[str, str, int], dict[int, int]] = {}
        for row, place in places.items():
            part = (place["crawl"], place["segment"], place["part"])
            by_part.setdefault(part, {})[place["part_row"]] = row
        samples: dict[int, dict[str, Any]] = {}
        for (crawl, segment, number), wanted in by_part.items():
            path = part_path(self._subset_of(crawl, segment), number)
            try:
                read = rows_at(path, list(wanted), _COLUMNS)
            except (FileNotFoundError, IndexError) as error:
                raise StaleIndexError(f"{path} has not the rows that were indexed") from error
            for part_row, sample in read.items():
                row = wanted[part_row]
                if sample["SAMPLE_ID"] != places[row]["SAMPLE_ID"]:
                    raise StaleIndexError(
                        f"{path} row {part_row} is sample {sample['SAMPLE_ID']}, the index holds "
                        f"{places[row]['SAMPLE_ID']}: make the index anew"
                    )
                samples[row] = sample
        return samples


def _hit(rank: int, score: float, place: Mapping[str, Any], sample: Mapping[str, Any]) -> Hit:
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
        crawl=place["crawl"],
        segment=place["segment"],
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
