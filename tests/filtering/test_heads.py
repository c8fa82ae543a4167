"""Heads' scores: columns of the scored pairs, kept while nothing else changed, and chosen by."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from laion_assets.clip.vectors import SamplesWriter, image_path
from laion_assets.filtering import score
from laion_assets.filtering.recipe import Recipe, RecipeError
from laion_assets.filtering.score import Earlier, score_segment
from laion_assets.filtering.subset import heads_columns, take_subset
from laion_assets.heads.convert import Linear, write_head
from laion_assets.heads.score import Scorer
from laion_assets.safety.prompts import Categories
from laion_assets.schemas import EMBEDDED, SCORED, SUBSET, with_scores
from laion_assets.tables import part_path
from tests.filtering.conftest import DIM, MakeEmbeddings, sample
from tests.heads.conftest import MODEL, described, write_linear


def head(name: str, folder: Path, dimension: int) -> Scorer:
    """A head whose score is one dimension of the unit vector."""
    weights = np.eye(DIM)[dimension]
    return Scorer.load(name, str(write_linear(folder / f"{name}{dimension}.json", weights)))


@pytest.fixture
def embeddings(make_embeddings: MakeEmbeddings) -> Path:
    rows = [sample(n, 0.5, {0: 0.9, 1: 0.1 * n, 2: 0.05}) for n in range(8)]
    return make_embeddings(rows[:5], rows[5:])


def test_each_head_is_a_column_of_the_rows(
    embeddings: Path, categories: Categories, tmp_path: Path
) -> None:
    heads = [head("first", tmp_path, 0), head("second", tmp_path, 1)]
    assert score_segment(embeddings, tmp_path / "scored", categories, heads) == 8
    for number in (0, 1):
        table = pq.ParquetFile(part_path(tmp_path / "scored", number)).read()
        assert table.schema.equals(with_scores(SCORED, ["score_first", "score_second"]))
        images = np.load(image_path(embeddings, number)).astype(np.float64)
        images /= np.linalg.norm(images, axis=1, keepdims=True)
        for dimension, name in enumerate(("first", "second")):
            scores = table[f"score_{name}"].to_numpy()
            np.testing.assert_allclose(scores, images[:, dimension], atol=1e-6)
    assert heads_columns(tmp_path / "scored") == ["score_first", "score_second"]


def test_only_what_a_head_did_not_score_is_scored_again(
    embeddings: Path, categories: Categories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = (head(*of) for of in (
        ("first", tmp_path, 0), ("second", tmp_path, 1), ("second", tmp_path, 2),
    ))  # fmt: skip
    score_segment(embeddings, tmp_path / "before", categories, [first, second])
    score_segment(embeddings, tmp_path / "whole", categories, [first, other])
    earlier = Earlier(tmp_path / "before", {"first": first.head.digest, "second": "0"})
    monkeypatch.setattr(score, "tag", None)  # nothing is tagged, compared or shuffled again
    monkeypatch.setattr(score, "cosines", None)
    kept = replace(first, layers=())  # it cannot score
    score_segment(embeddings, tmp_path / "after", categories, [kept, other], earlier)
    written = {path.name: path.read_bytes() for path in (tmp_path / "after").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}


def test_a_score_does_not_depend_on_how_rows_are_read(
    categories: Categories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last bits of a product depend on the number of rows that are multiplied at once."""
    chance, n, width = np.random.default_rng(3), 300, 768
    rows = [{name: value for name, value in sample(at).items() if name in EMBEDDED.names}
            for at in range(n)]  # fmt: skip
    with SamplesWriter(tmp_path / "embeddings", EMBEDDED, width) as writer:
        images = chance.normal(size=(n, width)).astype(np.float32)
        writer.write(pa.Table.from_pylist(rows, EMBEDDED), images, images)
    layers = [
        Linear(chance.normal(size=(after, before)), chance.normal(size=after), "relu")
        for before, after in ((width, 64), (64, 512), (512, 1))
    ]
    write_head(tmp_path / "deep.json", described("deep"), layers, MODEL)
    deep = Scorer.load("deep", str(tmp_path / "deep.json"))
    wide = replace(categories, **{
        name: replace(ranked, vectors=np.ones((len(ranked.texts), width), np.float32))
        for name in ("nsfw", "underage", "animals")
        for ranked in [getattr(categories, name)]
    })  # fmt: skip
    score_segment(tmp_path / "embeddings", tmp_path / "at_once", wide, [deep])
    score_segment(tmp_path / "embeddings", tmp_path / "before", wide)
    part = part_path(tmp_path / "before", 0)
    pq.write_table(pq.ParquetFile(part).read(), part, row_group_size=7)
    # Parquet is read across row groups, so that only smaller batches cut otherwise.
    monkeypatch.setattr(score, "ROW_GROUP", 7)
    score_segment(
        tmp_path / "embeddings", tmp_path / "later", wide, [deep], Earlier(tmp_path / "before")
    )
    at_once, later = (
        pq.ParquetFile(part_path(tmp_path / name, 0)).read(["score_deep"])
        for name in ("at_once", "later")
    )
    assert at_once.equals(later)


def test_scores_of_other_rows_are_not_kept(
    embeddings: Path, categories: Categories, tmp_path: Path
) -> None:
    score_segment(embeddings, tmp_path / "before", categories)
    table = pq.ParquetFile(part_path(tmp_path / "before", 0)).read()
    pq.write_table(table.slice(1), part_path(tmp_path / "before", 0))
    score_segment(embeddings, tmp_path / "after", categories, (), Earlier(tmp_path / "before"))
    assert pq.ParquetFile(part_path(tmp_path / "after", 0)).read().equals(table)


def test_a_recipe_takes_what_its_bounds_allow(
    embeddings: Path, categories: Categories, tmp_path: Path
) -> None:
    scored = tmp_path / "scored"
    score_segment(embeddings, scored, categories, [head("second", tmp_path, 1)])

    def taken(recipe: Recipe) -> list[int]:
        unsafe = dict.fromkeys(("drop_minor_text", "drop_underage", "drop_animal"), False)
        recipe = recipe.model_copy(update=unsafe)
        counts = take_subset(scored, embeddings, tmp_path / "subset", recipe, threshold=0.3)
        table = pq.ParquetFile(part_path(tmp_path / "subset", 0)).read()
        assert table.schema.equals(with_scores(SUBSET, ["score_second"]))
        assert counts.rejects.keys() <= {"scores", "predicate"}
        return [int(key) for key in table["key"].to_pylist()]

    # The second dimension of row n is about n / 9 of the first.
    assert taken(Recipe(max_scores={"second": 0.25})) == [0, 1, 2]
    assert taken(Recipe(min_scores={"second": 0.25}, max_scores={"second": 0.5})) == [3, 4, 5]
    assert taken(Recipe(where="score_second > 0.5 and width > 3")) == [6, 7]
    with pytest.raises(RecipeError, match=r"needs the head 'beauty'.*\[heads.beauty\]"):
        taken(Recipe(min_scores={"beauty": 1}))


def test_a_text_in_a_condition_names_no_head() -> None:
    recipe = Recipe(where="text <> 'score_card' and url not like '%score_a%' -- score_b")
    assert recipe.heads == []
    assert Recipe(where='"score_card" > 1').heads == ["card"]


@pytest.mark.parametrize("bound", [math.nan, math.inf, -math.inf])
def test_a_bound_is_a_number(bound: float) -> None:
    for field in ("min_scores", "max_scores"):
        with pytest.raises(ValidationError, match="the bound of mark is"):
            Recipe.model_validate({field: {"mark": bound}})


def test_a_recipe_says_which_heads_it_needs() -> None:
    recipe = Recipe(min_scores={"b": 1}, max_scores={"c": 1}, where="SCORE_a > 1 or score_b < 0")
    assert recipe.heads == ["a", "b", "c"]
    with pytest.raises(ValidationError, match="scores_a"):
        Recipe(where="scores_a > 1")
