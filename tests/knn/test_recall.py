from __future__ import annotations

import faiss
import numpy as np
import pytest

from laion_assets.knn.lists import Renumbering
from laion_assets.knn.recall import recall_at
from laion_assets.knn.truth import DEPTH, Truth


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    values = np.random.default_rng(1).normal(size=(3000, 24))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def found(vectors: np.ndarray, index: faiss.Index, queries: np.ndarray) -> dict[str, float]:
    """Recall of an index, by the true scores of what it finds."""
    _, rows = index.search(queries, 100)
    scores = np.einsum("qkd,qd->qk", vectors[rows].astype(np.float32), queries)
    scores[rows < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return dict(recall_at(Truth.of(queries, [vectors]), scores, rows, len(vectors)))


def test_an_exact_index_finds_all(vectors: np.ndarray) -> None:
    index = faiss.IndexFlatIP(24)
    index.add(vectors.astype(np.float32))
    queries = vectors[:50].astype(np.float32)
    assert found(vectors, index, queries) == {"1": 1.0, "10": 1.0, "100": 1.0}


def test_an_index_that_looks_in_few_cells_misses_some(vectors: np.ndarray) -> None:
    index = faiss.index_factory(24, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.astype(np.float32))
    index.add(vectors.astype(np.float32))
    queries = -vectors[:100].astype(np.float32)
    index.nprobe = 1
    few = found(vectors, index, queries)
    index.nprobe = 64
    assert few["100"] < few["10"] < 0.9
    assert found(vectors, index, queries) == {"1": 1.0, "10": 1.0, "100": 1.0}


def test_missing_vectors_are_misses(vectors: np.ndarray) -> None:
    index = faiss.IndexFlatIP(24)
    index.add(vectors[:1500].astype(np.float32))
    assert 0.3 < found(vectors, index, -vectors[:200].astype(np.float32))["10"] < 0.7


def test_duplicates_may_stand_for_one_another_and_a_row_counts_once() -> None:
    vectors = np.zeros((400, 8), dtype=np.float16)
    vectors[np.arange(400), np.arange(400) % 8] = 1
    queries = np.eye(8, dtype=np.float32)
    truth = Truth.of(queries, [vectors])
    ones = np.ones((8, 100), dtype=np.float32)
    # The last copies instead of the first ones.
    own = np.stack([np.arange(i, 400, 8)[::-1] for i in range(8)])
    rows = np.concatenate([own, own], axis=1)
    assert recall_at(truth, ones, rows, 400)["10"] == 1.0
    twice = np.repeat(own, 2, axis=1)
    assert recall_at(truth, ones, twice, 400)["10"] == 0.5


def test_the_truth_of_parts_together_is_that_of_the_whole(vectors: np.ndarray) -> None:
    queries = np.random.default_rng(2).normal(size=(20, 24)).astype(np.float32)
    whole = Truth.of(queries, [vectors])
    bounds = [(0, 70), (70, 70), (70, 1900), (1900, 3000)]
    parts = []
    for first, last in bounds:
        here = Truth.of(queries, [vectors[first:last]])
        moved = Renumbering(np.array([0]), np.array([first]))
        parts.append(here.renumbered(moved))
    together = Truth.best(parts[::-1])
    assert (together.rows == whole.rows).all()
    assert np.allclose(together.scores, whole.scores, atol=1e-6)
    # All kept neighbours are certain, in whatever order they were merged.
    for truth in (together, whole):
        assert truth.kth(DEPTH)[1].all()


def test_what_was_taken_out_leaves_the_deepest_neighbours_unknown(vectors: np.ndarray) -> None:
    queries = np.random.default_rng(2).normal(size=(20, 24)).astype(np.float32)
    without_half = Renumbering(np.array([0, 1500]), np.array([0, -1]))
    left = Truth.of(queries, [vectors]).renumbered(without_half)
    right = Truth.of(queries, [vectors[:1500]])
    for k in (1, 10, 50):
        scores, certain = left.kth(k)
        assert certain.all()
        assert np.allclose(scores, right.kth(k)[0], atol=1e-6)
    assert not left.kth(DEPTH - 10)[1].any()
    nothing = np.full((20, 100), -1)
    recall = recall_at(left, np.full((20, 100), -np.inf, np.float32), nothing, 1500)
    assert recall["10"] == 0
