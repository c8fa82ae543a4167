from __future__ import annotations

import faiss
import numpy as np
import pytest

from laion_assets.knn.files import new_index
from laion_assets.knn.recall import recall


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    values = np.random.default_rng(1).normal(size=(3000, 24))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def _flat(vectors: np.ndarray, kind: str = "flat") -> faiss.Index:
    index = new_index(kind, vectors.shape[1])
    index.add_with_ids(vectors.astype(np.float32), np.arange(len(vectors)))
    return index


@pytest.mark.parametrize("kind", ["flat", "flat_fp16"])
def test_an_exact_index_has_full_recall(vectors: np.ndarray, kind: str) -> None:
    assert recall(_flat(vectors, kind), vectors, 10, 100, seed=0) == 1.0


def test_blocks_one_after_another_are_as_one(vectors: np.ndarray) -> None:
    index = faiss.index_factory(24, "IVF32,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.astype(np.float32))
    index.add(vectors.astype(np.float32))
    whole = recall(index, vectors, 10, 100, seed=0)
    assert recall(index, [vectors[:7], vectors[7:7], vectors[7:]], 10, 100, seed=0) == whole


def test_an_index_that_looks_in_few_cells_misses_some(vectors: np.ndarray) -> None:
    index = faiss.index_factory(24, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.astype(np.float32))
    index.add(vectors.astype(np.float32))
    index.nprobe = 1
    few = recall(index, vectors, 10, 200, seed=0)
    index.nprobe = 64
    assert few < 0.9 < recall(index, vectors, 10, 200, seed=0)


def test_wrong_ids_are_misses(vectors: np.ndarray) -> None:
    index = new_index("flat", 24)
    index.add_with_ids(vectors.astype(np.float32), np.arange(len(vectors))[::-1].copy())
    assert recall(index, vectors, 10, 100, seed=0) < 0.1


def test_missing_vectors_are_misses(vectors: np.ndarray) -> None:
    half = _flat(vectors[:1500])
    assert 0.3 < recall(half, vectors, 10, 200, seed=0) < 0.7


def test_duplicates_may_stand_for_one_another() -> None:
    vectors = np.zeros((40, 8), dtype=np.float16)
    vectors[np.arange(40), np.arange(40) % 8] = 1
    assert recall(_flat(vectors), vectors, 3, 40, seed=0) == 1.0


def test_a_row_found_twice_counts_once(vectors: np.ndarray) -> None:
    twice = new_index("flat", 24)
    for _ in range(2):
        twice.add_with_ids(vectors.astype(np.float32), np.arange(len(vectors)))
    assert recall(twice, vectors, 10, 100, seed=0) == 0.5
