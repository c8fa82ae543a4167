from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from laion_assets.clip.vectors import image_path, text_path
from laion_assets.filtering import score
from laion_assets.filtering.score import score_segment
from laion_assets.filtering.similarities import cosines
from laion_assets.safety.prompts import Categories
from laion_assets.schemas import EMBEDDED, SCORED
from laion_assets.tables import part_path
from tests.filtering.conftest import (
    ANIMAL,
    CHILD,
    NAKED,
    PLAIN,
    UNSURE,
    MakeEmbeddings,
    sample,
)


def test_every_embedded_pair_is_scored_in_place(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    similarities = [0.1, -0.3, 0.31, 0.9]
    embeddings = make_embeddings(
        [sample(n, s) for n, s in enumerate(similarities)], [], [sample(9, 0.2)]
    )
    out = tmp_path / "scored"
    assert score_segment(embeddings, out, categories) == 5
    assert [path.name for path in sorted(out.glob("part-*"))] == [
        f"part-0000{n}.parquet" for n in range(3)
    ]
    table = pq.ParquetFile(part_path(out, 0)).read()
    assert table.schema.equals(SCORED)
    np.testing.assert_allclose(table["similarity"].to_numpy(), similarities, atol=2e-3)
    embedded = pq.ParquetFile(part_path(embeddings, 0)).read()
    assert table.select(EMBEDDED.names).equals(embedded)
    assert pq.ParquetFile(part_path(out, 1)).read().num_rows == 0


def test_similarity_is_what_the_stored_vectors_say(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    embeddings = make_embeddings([sample(n, n / 50) for n in range(50)])
    score_segment(embeddings, tmp_path / "scored", categories)
    scored = pq.ParquetFile(part_path(tmp_path / "scored", 0)).read()["similarity"].to_numpy()
    images = np.load(image_path(embeddings, 0)).astype(np.float64)
    texts = np.load(text_path(embeddings, 0)).astype(np.float64)
    for row in range(50):
        cosine = images[row] @ texts[row]
        cosine /= np.linalg.norm(images[row]) * np.linalg.norm(texts[row])
        assert scored[row] == pytest.approx(cosine, abs=1e-12)


def test_a_vector_is_never_more_like_itself_than_one() -> None:
    vectors = np.random.default_rng(0).normal(size=(5_000, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    bare = (vectors.astype(np.float32) ** 2).sum(axis=1)
    assert bare.max() > 1.0001
    ours = cosines(vectors, vectors)
    assert ours.max() <= 1.0
    assert ours.min() > 1 - 1e-12
    assert cosines(np.zeros((1, 4)), np.ones((1, 4))).tolist() == [0.0]


def test_a_part_is_worked_through_a_row_group_at_a_time(
    make_embeddings: MakeEmbeddings,
    categories: Categories,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embeddings = make_embeddings([sample(n, n / 50) for n in range(25)])
    score_segment(embeddings, tmp_path / "whole", categories)
    monkeypatch.setattr(score, "ROW_GROUP", 10)
    score_segment(embeddings, tmp_path / "scored", categories)
    scored = pq.ParquetFile(part_path(tmp_path / "scored", 0))
    groups = [scored.metadata.row_group(number).num_rows for number in range(3)]
    assert groups == [10, 10, 5]
    assert scored.read().equals(pq.ParquetFile(part_path(tmp_path / "whole", 0)).read())


def test_safety_columns(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    embeddings = make_embeddings(
        [
            sample(0),
            sample(1, near=UNSURE),
            sample(2, near=NAKED | {CHILD: 0.7}),
            sample(3, near=PLAIN | {ANIMAL: 0.7}, text="A Kid and a dog"),
        ]
    )
    score_segment(embeddings, tmp_path / "scored", categories)
    table = pq.ParquetFile(part_path(tmp_path / "scored", 0)).read()
    assert table["nsfw"].to_pylist() == ["UNLIKELY", "UNSURE", "NSFW", "UNLIKELY"]
    assert table["nsfw_category_1"].to_pylist() == [f"category {n}" for n in (0, 2, 2, 0)]
    assert table["underage_ranked"].to_pylist()[2]
    assert table["animal_ranked"].to_pylist() == [False, False, False, True]
    assert table["text_names_minors"].to_pylist() == [False, False, False, True]


def test_a_resumed_run_scores_only_what_is_missing(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    embeddings = make_embeddings([sample(0)], [sample(1), sample(2)])
    out = tmp_path / "scored"
    score_segment(embeddings, out, categories)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    part_path(out, 1).unlink()
    untouched = part_path(out, 0).stat().st_mtime_ns
    assert score_segment(embeddings, out, categories) == 3
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert part_path(out, 0).stat().st_mtime_ns == untouched


def test_vectors_that_do_not_match_the_metadata_are_refused(
    make_embeddings: MakeEmbeddings, categories: Categories, tmp_path: Path
) -> None:
    embeddings = make_embeddings([sample(0), sample(1)])
    np.save(text_path(embeddings, 0), np.ones((1, 8), dtype=np.float16))
    with pytest.raises(ValueError, match=r"text_emb_00000\.npy.*2 rows"):
        score_segment(embeddings, tmp_path / "scored", categories)
