"""Does an index hold what it should, and find what brute force finds?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from laion_assets.knn.files import IndexSummary, open_index
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.subset import MODALITIES, Vectors, blocks, subset_parts

TIE: Final = 1e-5
"""Similarities closer than this are equal: float32 sums differ by the order of summation."""

Floats = npt.NDArray[np.float32]


def recall(
    index: Any, vectors: Vectors | Sequence[Vectors], k: int, n_queries: int, seed: int
) -> float:
    """Share of the true ``k`` nearest neighbours that the index finds, 0..1.

    ``vectors`` are the ``(n, d)`` vectors that were indexed, as one array or as several one after
    another, the i-th having the id i; they are read once, block by block. Queries are sampled
    from them. A neighbour is as good as another of the same similarity, so that duplicates in
    the data do not count as misses. 1.0 if there are no vectors.
    """
    arrays = [vectors] if isinstance(vectors, np.ndarray) else list(vectors)
    n = sum(len(array) for array in arrays)
    if n == 0:
        return 1.0
    k = min(k, n)
    rows = np.random.default_rng(seed).choice(n, size=min(n_queries, n), replace=False)
    queries = _gather(arrays, np.sort(rows))
    _, found = index.search(queries, k)
    exact, of_found = _similarities(arrays, queries, found, k)
    # A row counts once even if an index held it twice.
    repeated = np.zeros(found.shape, dtype=bool)
    for column in range(1, k):
        repeated[:, column] = (found[:, :column] == found[:, column : column + 1]).any(axis=1)
    good = (of_found >= exact.min(axis=1, keepdims=True) - TIE) & ~repeated
    return float(good.sum() / good.size)


def measure_recall(
    index_dir: Path, subsets: Sequence[Path], options: IndexOptions
) -> dict[str, float]:
    """``{"image": recall, "text": recall}`` of an index over the subsets, in their order."""
    parts = [part for subset in subsets for part in subset_parts(subset)]
    return {
        modality: recall(
            open_index(index_dir, modality),
            [part.vectors(modality) for part in parts],
            options.recall_k,
            options.recall_queries,
            options.recall_seed,
        )
        for modality in MODALITIES
    }


def size_problem(index_dir: Path, rows: int) -> str | None:
    """What is wrong if the indices and ids do not hold exactly ``rows`` rows, else None."""
    sizes = {
        "index.json": IndexSummary.read(index_dir).n,
        "ids.parquet": int(pq.read_metadata(index_dir / "ids.parquet").num_rows),
    } | {
        f"{modality}.index": int(open_index(index_dir, modality).ntotal) for modality in MODALITIES
    }
    wrong = [f"{name} holds {size}" for name, size in sizes.items() if size != rows]
    return f"{', '.join(wrong)}; the subset has {rows} rows" if wrong else None


def _gather(arrays: Sequence[Vectors], rows: npt.NDArray[np.int64]) -> Floats:
    taken, start = [], 0
    for array in arrays:
        here = rows[(rows >= start) & (rows < start + len(array))] - start
        taken.append(np.asarray(array[here], dtype=np.float32))
        start += len(array)
    return np.ascontiguousarray(np.concatenate(taken))


def _similarities(
    arrays: Sequence[Vectors], queries: Floats, found: npt.NDArray[np.int64], k: int
) -> tuple[Floats, Floats]:
    """The ``k`` highest similarities by brute force, and those of the found rows: ``(q, k)``."""
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    of_found = np.full(found.shape, -np.inf, dtype=np.float32)
    start = 0
    for array in arrays:
        for block in blocks(array):
            scores = queries @ block.T
            both = np.concatenate([best, scores], axis=1)
            best = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
            query, place = np.nonzero((found >= start) & (found < start + len(block)))
            of_found[query, place] = scores[query, found[query, place] - start]
            start += len(block)
    return best, of_found
