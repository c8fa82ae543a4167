"""Search: a vector in, the nearest samples with their metadata out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from laion_assets.knn.files import SearchParameters
from laion_assets.knn.open_index import Floats, Ints, OpenIndex, StaleIndexError
from laion_assets.knn.samples import Sample, SamplePlace, Samples
from laion_assets.knn.subset import Modality, Subsets

__all__ = ["Hit", "SearchParameters", "Searcher", "StaleIndexError"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(Sample):
    """One result: ``score`` is its cosine with the query, ``similarity`` that of its own pair."""

    rank: int
    score: float


class Searcher:
    """Search an index folder; vectors are read where they lie, metadata for the hits alone.

    Several threads may search at once. A searcher keeps the index that it opened, even when the
    folder is replaced.
    """

    def __init__(self, index_dir: Path, subsets: Subsets) -> None:
        self.index = OpenIndex(index_dir, subsets)
        self.summary = self.index.summary
        self._samples = Samples(subsets)

    def search(
        self,
        vector: npt.ArrayLike,
        k: int = 10,
        modality: Modality = "image",
        parameters: SearchParameters | None = None,
    ) -> list[Hit]:
        """The ``k`` nearest images or texts to a ``(d,)`` vector of any length but zero.

        ``parameters`` replace those recorded in the index. Raises ``ValueError`` for a vector of
        another shape or without direction, and as :meth:`hits` does.
        """
        query = np.asarray(vector, dtype=np.float32)
        if query.shape != (self.summary.d,):
            raise ValueError(
                f"the index ({self.summary.model}) holds vectors of shape ({self.summary.d},), "
                f"not {query.shape}"
            )
        scores, rows = self.nearest(query[None, :], k, modality, parameters)
        found = rows[0] >= 0
        return self.hits(rows[0][found], scores[0][found])

    def nearest(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        modality: Modality = "image",
        parameters: SearchParameters | None = None,
    ) -> tuple[npt.NDArray[np.float32], Ints]:
        """Scores and rows, ``(q, k)``, of the nearest to many ``(q, d)`` vectors at once.

        Best first, padded with -inf and -1. Raises ``ValueError`` as :meth:`search` does.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        queries = np.asarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.summary.d:
            raise ValueError(f"queries must have the shape (q, {self.summary.d})")
        norms = np.linalg.norm(queries, axis=1, keepdims=True)
        if not (np.isfinite(norms).all() and (norms > 0).all()):
            raise ValueError("the query vector has no direction (zero or not finite)")
        found = min(k, max(1, self.summary.n))
        return self.index.nearest(queries / norms, found, modality, parameters=parameters)

    def hits(self, rows: Sequence[int] | Ints, scores: Sequence[float] | Floats) -> list[Hit]:
        """Samples of rows and scores, ranked as given.

        A sample that moved, because its subset was rebuilt, is found at its new row. Raises
        :class:`StaleIndexError` if the subset no longer has one, and
        :class:`~laion_assets.knn.subset.SubsetError` if a subset's rows and vectors differ.
        """
        places = self.places(rows)
        hits: list[Hit] = []
        for place, located, score in zip(places, self._samples.locate(places), scores, strict=True):
            if located is None:
                raise StaleIndexError.of(place)
            hits.append(Hit.of(located.values, rank=len(hits) + 1, score=float(score)))
        return hits

    def reconstruct(self, row: int, modality: Modality = "image") -> npt.NDArray[np.float16]:
        """The ``(d,)`` vector of a row, as the subset has it."""
        vector: npt.NDArray[np.float16] = self.index.vectors(np.array([row]), modality)[0]
        return vector

    def places(self, rows: Sequence[int] | Ints) -> list[SamplePlace]:
        """Place of each row's sample. Raises ``IndexError`` for a row beyond the last one."""
        return self.index.places(rows)
