"""Samples of subsets' vectors: to train a codec on, and as queries to measure recall with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from laion_assets.knn.options import IndexOptions
from laion_assets.knn.subset import MODALITIES, Modality, SubsetPart, modalities_of
from laion_assets.tables import write_array

_NEAR_DUPLICATE: Final = 0.4
_AWAY: Final = 0.1
"""How far queries are moved: to a cosine of 0.93 and of 0.995 with the original."""

Floats = npt.NDArray[np.float32]


def gather(parts: Sequence[SubsetPart], modality: Modality, rows: npt.NDArray[np.int64]) -> Floats:
    """Vectors of sorted row numbers, counted through all parts, ``(n, d)`` float32."""
    taken, start = [], 0
    for part in parts:
        vectors = part.vectors(modality)
        first, last = np.searchsorted(rows, [start, start + len(vectors)])
        taken.append(np.asarray(vectors[rows[first:last] - start], dtype=np.float32))
        start += len(vectors)
    return np.ascontiguousarray(np.concatenate(taken))


def sample_queries(
    parts: Sequence[SubsetPart], modality: Modality, n: int, available: int, seed: int
) -> Floats:
    """Sample queries like those of people, ``(n, d)`` of unit norm.

    Half are vectors of the *other* modality (a text asks for images). A quarter are vectors of the
    index moved as far as a near-duplicate, and a quarter are vectors of the index themselves. There
    are fewer than ``n`` if fewer vectors are ``available``, or if fewer of the other modality are.
    """
    random = np.random.default_rng([seed, MODALITIES.index(modality)])
    n = min(n, available)
    rows = random.choice(available, size=n, replace=False)
    other = next(kind for kind in MODALITIES if kind != modality)
    across, own = rows[: n // 2], np.sort(rows[n // 2 :])
    having = [part for part in parts if other in modalities_of([part])]
    if len(having) < len(parts):  # images without captions
        known = sum(part.rows() for part in having)
        across = random.choice(known, size=min(known, n // 2), replace=False)
    vectors = gather(parts, modality, own)
    vectors[: n // 4] = _moved(vectors[: n // 4], _NEAR_DUPLICATE, random)
    crossing = [gather(having, other, np.sort(across))] if having else []
    queries = np.concatenate([*crossing, vectors])
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    return queries


def _moved(vectors: Floats, length: float, random: np.random.Generator) -> Floats:
    """Move each unit vector by ``length`` in a random direction; return unit vectors."""
    noise = random.standard_normal(vectors.shape, dtype=np.float32)
    moved = vectors + length * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    normed: Floats = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return normed


def write_queries(
    parts: Sequence[SubsetPart], modality: Modality, out: Path, options: IndexOptions
) -> None:
    """Write the queries that a codec's recall is measured with into its folder."""
    n = sum(part.rows() for part in parts)
    queries = sample_queries(parts, modality, options.recall_queries, n, options.recall_seed)
    # No sample's own vector is kept here: it would outlive a removed sample.
    random = np.random.default_rng([options.recall_seed, len(MODALITIES)])
    queries = _moved(queries, _AWAY, random)
    write_array(out / f"{modality}_queries.npy", queries.astype(np.float16))
