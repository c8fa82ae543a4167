from __future__ import annotations

import pyarrow as pa
import pytest
from pydantic import ValidationError

from laion_assets.filtering.recipe import PredicateError, Recipe, rows_where
from laion_assets.schemas import SCORED


def scored(**columns: list[object]) -> pa.Table:
    n = len(next(iter(columns.values())))
    return pa.table(
        [pa.array(columns.get(name, [None] * n), kind) for name, kind in _types()],
        schema=SCORED,
    )


def _types() -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in SCORED]


def test_the_default_is_laion400m_with_all_rules() -> None:
    recipe = Recipe()
    assert (recipe.name, recipe.threshold, recipe.where) == ("laion400m", None, None)
    assert recipe.drop_minor_text
    assert recipe.drop_underage
    assert recipe.drop_animal


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
