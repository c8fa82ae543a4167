"""Exact neighbours of fixed queries, kept beside an index to make its recall cheap to measure.

Brute force over the whole index would read all of it each time a segment is added. Finding a
segment's exact neighbours of the codec's queries reads that segment alone, and the neighbours in
several segments are the best of each one's. A merged index thus knows its truth without reading a
vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from laion_assets.files import atomic_path
from laion_assets.knn.lists import Renumbering
from laion_assets.knn.subset import Vectors, blocks

DEPTH: Final = 200
"""Neighbours kept for each query: twice the deepest recall, so that some may be removed."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Truth:
    """The best rows of each query, best first, ``(q, depth)``, padded with -inf and -1.

    ``floor``, ``(q,)``, is the score above which no row is missing.
    """

    scores: Floats
    rows: Ints
    floor: Floats

    @classmethod
    def of(cls, queries: Floats, arrays: Iterable[Vectors], depth: int = DEPTH) -> Truth:
        """Find them by brute force over arrays, each read once, a block at a time."""
        import faiss

        truth = cls.nothing(len(queries), depth)
        start = 0
        for array in arrays:
            for block in blocks(array):
                k = min(depth, len(block))
                scores, rows = faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
                cut = scores[:, -1] if len(block) > k else np.full(len(queries), -np.inf)
                here = cls(scores, rows.astype(np.int64) + start, cut.astype(np.float32))
                truth = cls.best([truth, here], depth)
                start += len(block)
        return truth

    @classmethod
    def nothing(cls, queries: int, depth: int = DEPTH) -> Truth:
        """Truth of an index without vectors."""
        return cls(
            np.full((queries, depth), -np.inf, np.float32),
            np.full((queries, depth), -1, np.int64),
            np.full(queries, -np.inf, np.float32),
        )

    @classmethod
    def best(cls, truths: Sequence[Truth], depth: int = DEPTH) -> Truth:
        """Merge several truths of the same queries."""
        scores = np.concatenate([truth.scores for truth in truths], axis=1)
        rows = np.concatenate([truth.rows for truth in truths], axis=1)
        floor = np.max([truth.floor for truth in truths], axis=0)
        # The lower row wins a tie, in whatever order the truths were given.
        order = np.lexsort((rows, -scores), axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
        if scores.shape[1] > depth:
            floor = np.maximum(floor, scores[:, depth])
        return cls(scores[:, :depth], rows[:, :depth], floor.astype(np.float32))

    def renumbered(self, rows: Renumbering) -> Truth:
        """The same truth with the rows' new numbers, without the rows that have none."""
        new = rows(self.rows)
        scores = np.where(new >= 0, self.scores, -np.inf).astype(np.float32)
        return Truth.best([Truth(scores, new, self.floor)], self.rows.shape[1])

    def kth(self, k: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Score of each query's ``k``-th neighbour and whether it is certain, both ``(q,)``."""
        score = self.scores[:, k - 1]
        return score, (score >= self.floor) & np.isfinite(score)

    def write(self, path: Path) -> None:
        # A segment's are half as large with 32 bits, and there are 10,000 of them.
        rows = self.rows.astype(np.int32) if self.rows.max(initial=0) < 2**31 else self.rows
        with atomic_path(path) as beside, beside.open("wb") as out:
            np.savez(out, scores=self.scores, rows=rows, floor=self.floor)

    @classmethod
    def read(cls, path: Path) -> Truth:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["scores"], arrays["rows"].astype(np.int64), arrays["floor"])
