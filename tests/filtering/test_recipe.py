from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from laion_assets.clip.thresholds import UnknownThresholdError
from laion_assets.filtering.recipe import (
    PredicateError,
    Recipe,
    RecipeError,
    load_recipe,
    recipe_fields,
    rows_where,
    shipped_recipes,
)
from laion_assets.options import versioned
from laion_assets.schemas import SCORED


def scored(**columns: list[object]) -> pa.Table:
    n = len(next(iter(columns.values())))
    return pa.table(
        [pa.array(columns.get(name, [None] * n), kind) for name, kind in _types()],
        schema=SCORED,
    )


def _types() -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in SCORED]


VIT = "ViT-B-32/openai"


def deciding(recipe: Recipe) -> dict[str, object]:
    return versioned(recipe)


def test_the_default_is_laion400m_with_all_rules() -> None:
    recipe = load_recipe("laion400m")
    assert deciding(recipe) == deciding(Recipe())
    assert recipe.threshold_of(VIT) == 0.30
    assert recipe.where is None
    assert recipe.drop_minor_text
    assert recipe.drop_underage
    assert recipe.drop_animal


def test_laion5b_takes_the_same_at_a_lower_similarity() -> None:
    recipe = load_recipe("laion5b-en")
    assert recipe.threshold_of(VIT) == 0.28
    assert recipe.where
    languages = scored(language=["en", "de", "unknown", None])
    assert rows_where(languages, recipe.where).tolist() == [True, False, False, True]
    assert recipe.drop_minor_text
    assert recipe.drop_underage
    assert recipe.drop_animal


def test_shipped_recipes_say_where_they_are_from() -> None:
    assert shipped_recipes() == ["laion400m", "laion5b-en"]
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.source
        assert recipe.about


def test_a_threshold_of_one_model_is_none_of_anothers() -> None:
    with pytest.raises(UnknownThresholdError, match=r"laion5b-en.*ViT-L-14/openai.*`threshold`"):
        load_recipe("laion5b-en").threshold_of("ViT-L-14/openai")
    # The table's threshold if the recipe has none; else the recipe's own, for any model.
    assert Recipe(name="own").threshold_of(VIT) == 0.30
    with pytest.raises(UnknownThresholdError, match="ViT-L-14"):
        Recipe(name="own").threshold_of("ViT-L-14/openai")
    changed = load_recipe("laion5b-en").model_copy(update={"threshold": 0.2})
    assert changed.threshold_of("ViT-L-14/openai") == 0.2


@pytest.mark.parametrize(
    ("section", "name", "why"),
    [
        ({"recipe": "nobody"}, None, r"no recipe 'nobody'.*laion400m, laion5b-en"),
        ({"recipe": "laion5b-en", "version": 2}, None, "takes 'laion5b-en' as it is"),
        ({"threshold": 0.2, "version": 2}, None, "needs a name of its own"),
        ({"name": "laion400m", "threshold": 0.2}, None, "'laion400m' is a shipped recipe"),
        ({}, "laion5b-en", "'laion5b-en' is a shipped recipe"),
        ({"name": "other"}, "own", "leave `name` out"),
    ],
)
def test_a_name_always_means_the_same_rules(
    section: dict[str, object], name: str | None, why: str
) -> None:
    with pytest.raises(RecipeError, match=why):
        recipe_fields(section, name)


@pytest.mark.parametrize(
    ("section", "name", "called"),
    [
        ({"threshold": 0.32}, None, "laion400m@0.32"),
        ({"recipe": "laion400m", "threshold": 0.32}, None, "laion400m@0.32"),
        ({"recipe": "laion5b-en", "threshold": 0.32}, "mine", "laion5b-en@0.32"),
    ],
)
def test_a_threshold_alone_is_the_models_and_the_name_says_so(
    section: dict[str, object], name: str | None, called: str
) -> None:
    recipe = Recipe.model_validate(recipe_fields(section, name))
    shipped = load_recipe(called.partition("@")[0])
    assert recipe == shipped.model_copy(update={"name": called, "threshold": 0.32})
    assert recipe.threshold_of("local-dir:/my/model") == 0.32


def test_a_recipe_in_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"name": "own", "version": 3, "threshold": 0.2}')
    assert load_recipe(str(path)) == Recipe(name="own", version=3, threshold=0.2)
    for text, why in (
        ('{"name": "own", "treshold": 0.2}', "has no treshold"),
        ('{"name": "own", "version": 0}', "version"),
        ("{", "is not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=why):
            load_recipe(str(path))


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("similarity >= 0.28", [False, True, True, False]),
        ("width >= 256 and nsfw = 'UNLIKELY'", [True, False, True, False]),
        ("text ilike '%cat%' or similarity > 0.3", [True, False, True, False]),
        ("least(width, height) > 0 -- a remark", [True, True, True, False]),
        ("true", [True, True, True, True]),
        ("null", [False, False, False, False]),
        ("language is null", [True, True, True, True]),
    ],
)
def test_a_condition_is_asked_of_each_row(where: str, rows: list[bool]) -> None:
    table = scored(
        similarity=[0.1, 0.28, 0.35, None],
        width=[256, 100, 300, None],
        height=[10, 10, 10, None],
        nsfw=["UNLIKELY", "UNLIKELY", "UNLIKELY", None],
        text=["a Cat", "a dog", "cats", None],
    )
    assert rows_where(table, where).tolist() == rows


def test_many_rows_keep_their_places() -> None:
    table = scored(width=list(range(50_000)))
    assert rows_where(table, "width % 7 = 0").nonzero()[0].tolist() == list(range(0, 50_000, 7))


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("similarity >", "syntax"),
        ("no_such_column > 1", "no_such_column"),
        ("true) or (select 1", "syntax"),
        ("true, false", "one|expression|Expected"),
        ("1; drop table x", "statement"),
        ("row_number() over () > 1", "window"),
        ("count(*) > 1", "aggregate"),
        ("width in (select 1)", "sub-query"),
        ("exists (select * from read_text('/etc/passwd'))", "sub-query"),
        ("random() < 0.5", "random"),
        ("now() > '2020-01-01'", "now"),
        ("current_date > '2020-01-01'", "no column current_date"),
        ("age(timestamp '2020-01-01') > interval 1 day", "age"),
        ("file_row_number < 5", "no column file_row_number"),
    ],
)
def test_what_is_not_a_condition_of_one_row_is_refused(where: str, why: str) -> None:
    with pytest.raises(ValidationError, match=f"(?i){why}"):
        Recipe(where=where)
    with pytest.raises(PredicateError, match=f"(?i){why}"):
        rows_where(SCORED.empty_table(), where)


def test_a_threshold_is_a_cosine() -> None:
    with pytest.raises(ValidationError, match="threshold"):
        Recipe(threshold=30)
