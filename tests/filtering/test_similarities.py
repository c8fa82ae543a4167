from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from laion_assets.filtering.similarities import (
    LET_THROUGH,
    PER_UNIT,
    NotCalibratedError,
    Similarities,
    cosines,
)

DIM = 64


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def rows_of(n: int, texts: list[str] | None = None, images: list[str] | None = None) -> pa.Table:
    return pa.table(
        {
            "text": texts or [f"text {row}" for row in range(n)],
            "sha256": images or [f"{row:064x}" for row in range(n)],
        }
    )


def counted(images: np.ndarray, texts: np.ndarray, rows: pa.Table | None = None) -> Similarities:
    found = Similarities()
    found.add(cosines(images, texts), rows or rows_of(len(images)), images, texts)
    return found


def pairs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and texts about 40 topics, which share a direction as CLIP's vectors do."""
    topics = np.random.default_rng(0).normal(size=(40, DIM))
    random = np.random.default_rng(seed)
    of = topics[random.integers(0, 40, n)] + 0.7
    noise = random.normal(size=(2, n, DIM))
    return unit(of + noise[0]), unit(of + noise[1])


@pytest.mark.parametrize("let_through", LET_THROUGH)
def test_a_threshold_lets_the_promised_share_of_mismatches_through(let_through: float) -> None:
    """Other pairs, with planted mismatches: each image with the text of the one behind it."""
    proposal = counted(*pairs(5_000, seed=1)).propose(let_through)
    images, texts = pairs(5_000, seed=2)
    mismatched = cosines(images, np.roll(texts, 1, axis=0))
    assert np.mean(mismatched >= proposal.threshold) == pytest.approx(let_through, abs=0.01)
    assert np.mean(cosines(images, texts) >= proposal.threshold) == pytest.approx(
        proposal.real, abs=0.02
    )


def test_the_shares_are_those_of_the_pairs() -> None:
    images, texts = pairs(300, seed=1)
    found = counted(images, texts)
    real = cosines(images, texts)
    for threshold in (-1.0, 0.29, 0.3, 0.5, 1.0):
        assert found.at(threshold).real == np.mean(real >= threshold)
    proposal = found.propose(0.05)
    assert proposal == found.at(proposal.threshold)
    assert proposal.shuffled <= 0.05 < found.at(proposal.threshold - 1 / PER_UNIT).shuffled


def test_no_image_goes_with_its_own_text_or_an_equal_one() -> None:
    """Every pair of one topic has the cosine 1, and pairs of others 0."""
    topic = np.array([0, 0, 1, 2, 3] * 20)
    vectors = np.eye(4)[topic].astype(np.float16)
    texts = [f"topic {number}" for number in topic]
    same_text = counted(vectors, vectors, rows_of(100, texts=texts))
    assert same_text.at(1.0).real == 1
    assert same_text.at(0.5).shuffled == 0
    same_image = counted(vectors, vectors, rows_of(100, images=texts))
    assert same_image.at(0.5).shuffled == 0
    assert counted(vectors, vectors).at(0.5).shuffled > 0


def test_few_images_go_with_several_texts_and_one_with_none() -> None:
    assert counted(*pairs(100, seed=1)).shuffled.sum() == 100 * 99
    assert counted(*pairs(30_000, seed=1)).shuffled.sum() == 30_000
    alone = counted(*pairs(1, seed=1))
    assert (alone.real.sum(), alone.shuffled.sum()) == (1, 0)
    with pytest.raises(NotCalibratedError, match="no shuffled pairs"):
        alone.propose(0.02)


def test_counts_of_parts_add_up(tmp_path: Path) -> None:
    parts = [counted(*pairs(200, seed=seed)) for seed in range(3)]
    for number, part in enumerate(parts[:2]):
        (tmp_path / "a").mkdir(exist_ok=True)
        part.write(tmp_path / "a", number)
    (tmp_path / "b").mkdir()
    parts[2].write(tmp_path / "b", 0)
    Similarities().write(tmp_path / "b", 1)
    total = Similarities.read([tmp_path / "a", tmp_path / "b"])
    assert (total.real == sum(part.real for part in parts)).all()
    assert (total.shuffled == sum(part.shuffled for part in parts)).all()
    (tmp_path / "c").mkdir()
    with pytest.raises(NotCalibratedError, match="c has no"):
        Similarities.read([tmp_path / "a", tmp_path / "c"])


def test_the_last_cosine_has_a_place() -> None:
    ones = np.ones((3, 4), np.float16)
    found = counted(ones, ones)
    assert (found.at(1.0).real, found.at(1.0).shuffled) == (1, 1)
    assert found.propose(0.02).threshold == 1.0
