"""Recipes: named, versioned choices of which scored pairs make a subset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator

from laion_assets import schemas


class PredicateError(ValueError):
    """A recipe's `where` that cannot be evaluated; the message says why."""


class Recipe(BaseModel, frozen=True):
    """Which scored pairs a subset takes; the default is LAION-400M's rules."""

    name: str = Field("laion400m", min_length=1, description="The subset's name")
    version: int = Field(1, ge=1, description="Raised when the recipe changes")
    threshold: float | None = Field(
        None, ge=-1, le=1, description="Lowest similarity kept; null takes the model's of the table"
    )
    drop_minor_text: bool = Field(
        True, description="Drop NSFW and UNSURE samples whose text names minors"
    )
    drop_underage: bool = Field(
        True, description="Drop NSFW and UNSURE samples that look like minors"
    )
    drop_animal: bool = Field(
        True, description="Drop NSFW and UNSURE samples that look like animals"
    )
    where: str | None = Field(
        None,
        description="A further condition on a row of the scored pairs, as a DuckDB expression:"
        " width >= 256 and language = 'en'",
    )

    @field_validator("where")
    @classmethod
    def _evaluates(cls, where: str | None) -> str | None:
        if where is not None:
            rows_where(schemas.SCORED.empty_table(), where)
        return where


def rows_where(table: pa.Table, where: str) -> NDArray[np.bool_]:
    """Whether each row meets the condition, bool (n,); an unknown (NULL) does not.

    The condition sees one row at a time and no files, so a pair's fate depends neither on its
    neighbours nor on the moment: aggregates, windows, sub-queries and volatile functions such as
    ``random()`` are refused. Raises :class:`PredicateError`.
    """
    import duckdb

    numbered = table.append_column("file_row_number", pa.array(np.arange(len(table))))
    try:
        with duckdb.connect(config={"enable_external_access": "false"}) as connection:
            condition = duckdb.SQLExpression(where)
            _refuse_what_is_not_of_the_row(connection, where)
            met = connection.from_arrow(numbered).filter(condition)
            rows = met.project("file_row_number").fetchnumpy()["file_row_number"]
    except duckdb.Error as error:
        raise PredicateError(f"the condition {where!r}: {str(error).splitlines()[0]}") from error
    kept = np.zeros(len(table), dtype=np.bool_)
    kept[np.asarray(rows, dtype=np.int64)] = True
    return kept


def _refuse_what_is_not_of_the_row(connection: Any, where: str) -> None:
    row = connection.execute(
        "select json_serialize_sql(?)", [f"select (\n{where}\n) as condition"]
    ).fetchone()
    volatile = {
        name
        for (name,) in connection.execute(
            "select function_name from duckdb_functions() where stability <> 'CONSISTENT'"
        ).fetchall()
    }
    for node in _nodes(json.loads(row[0])):
        if node.get("class") == "SUBQUERY":
            raise PredicateError(f"the condition {where!r} holds a sub-query")
        if node.get("class") == "FUNCTION" and node.get("function_name") in volatile:
            raise PredicateError(
                f"the condition {where!r} calls {node['function_name']}(), which gives another"
                " result each time"
            )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
