"""Recipes: named, versioned rules that choose which scored pairs make a subset.

Two are shipped as data files in ``recipes/``; others are written in the settings file.
"""

from __future__ import annotations

import atexit
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator

from laion_assets import schemas
from laion_assets.clip.thresholds import (
    UnknownThresholdError,
    entry_for,
    may_change,
    threshold_for,
    unknown,
)
from laion_assets.options import ADDED, OPERATIONAL, Options

HERE: Final = Path(__file__).with_name("recipes")
DEFAULT: Final = "laion400m"
"""Recipe that is used if none is configured; its rules are the defaults of :class:`Recipe`."""


_SCORE: Final = re.compile(rf"{schemas.SCORE_PREFIX}[a-z0-9_]+")
_COLUMNS: Final = frozenset(name.lower() for name in schemas.SCORED.names)


class RecipeError(ValueError):
    """A recipe is missing or invalid; the message says which and why."""


class PredicateError(RecipeError):
    """A recipe's `where` cannot be evaluated; the message says why."""


class Recipe(Options):
    """Rules for which scored pairs a subset takes; the defaults are those of LAION-400M."""

    name: str = Field(DEFAULT, min_length=1, description="Name of the recipe")
    version: int = Field(
        1, ge=1, description="Version of the recipe; raise it when the rules change"
    )
    about: Annotated[str, OPERATIONAL] = Field(
        "", description="What the recipe takes and why, for people"
    )
    source: Annotated[str, OPERATIONAL] = Field("", description="Source of the rules")
    threshold: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Lowest similarity kept, for any model; null uses `thresholds`",
    )
    thresholds: Mapping[str, float] = Field(
        default_factory=dict,
        description="Lowest similarity kept, by model (MODEL/PRETRAINED, or"
        " MODEL/PRETRAINED@VERSION for weights of a file or folder); empty uses the shipped table",
    )
    drop_minor_text: bool = Field(
        True, description="Drop NSFW and UNSURE samples whose text names minors"
    )
    drop_underage: bool = Field(
        True, description="Drop NSFW and UNSURE samples whose image may show minors"
    )
    drop_animal: bool = Field(
        True, description="Drop NSFW and UNSURE samples whose image may show animals"
    )
    duplicates: Annotated[str | None, ADDED] = Field(
        None,
        pattern="^images$",  # Dagster's resources know no literals
        description='`"images"` takes one of the images that are copies of one picture, of all'
        " segments; null takes all",
    )
    min_scores: Annotated[Mapping[str, float], ADDED] = Field(
        default_factory=dict, description="Lowest score kept, by head; empty keeps any"
    )
    max_scores: Annotated[Mapping[str, float], ADDED] = Field(
        default_factory=dict, description="Highest score kept, by head; empty keeps any"
    )
    where: str | None = Field(
        None,
        description="Further condition on a scored pair, as a DuckDB expression, such as"
        " width >= 256 and language = 'en'",
    )

    @field_validator("where")
    @classmethod
    def _evaluates(cls, where: str | None) -> str | None:
        if where is not None:
            columns = schemas.with_scores(schemas.SCORED, _scores_in(where))
            rows_where(columns.empty_table(), where)
        return where

    @field_validator("min_scores", "max_scores")
    @classmethod
    def _are_numbers(cls, bounds: Mapping[str, float]) -> Mapping[str, float]:
        for head, bound in bounds.items():
            if not math.isfinite(bound):
                raise ValueError(f"the bound of {head} is {bound}, which no score can be held to")
        return bounds

    @field_validator("thresholds")
    @classmethod
    def _of_known_weights(cls, thresholds: Mapping[str, float]) -> Mapping[str, float]:
        for key in filter(may_change, thresholds):
            raise ValueError(
                f"{key} may hold other weights tomorrow: name their version, {key}@VERSION, as "
                "`laion-assets calibrate` prints it"
            )
        return thresholds

    @property
    def heads(self) -> list[str]:
        """Names of the heads whose scores the recipe needs, sorted."""
        columns = _scores_in(self.where) if self.where else ()
        named = {column.removeprefix(schemas.SCORE_PREFIX) for column in columns}
        return sorted(named | {*self.min_scores, *self.max_scores})

    def threshold_of(self, model: str, version: str | None = None) -> float:
        """Lowest similarity kept of pairs embedded by the model (`MODEL/PRETRAINED`).

        It is the recipe's `threshold`, else that of its `thresholds`, else that of the table in
        :mod:`laion_assets.clip.thresholds`. ``version``: the model's, or None before it is loaded.
        Raises :class:`UnknownThresholdError` if the table has none, or if the recipe has thresholds
        for other models only: a cosine of one model means nothing for another.
        """
        if self.threshold is None and self.thresholds:
            found = entry_for(self.thresholds, model, version)
            if found is None:
                raise UnknownThresholdError(
                    f"the recipe {self.name!r} has no threshold for "
                    f"{unknown(self.thresholds, model, version)}, and a similarity of one model "
                    "means nothing for another: set `threshold` beside `recipe`, as "
                    "`laion-assets calibrate` proposes it"
                )
            return found
        return threshold_for(model, self, version=version)

    def at(self, threshold: float) -> Recipe:
        """The same rules from another similarity, under a name that says so."""
        name = f"{self.name}@{threshold:g}"
        return self.model_copy(update={"name": name, "threshold": threshold})

    @property
    def title(self) -> str:
        """`NAME vVERSION`, as shown in metadata."""
        return f"{self.name} v{self.version}"


def shipped_recipes() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.json"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a shipped recipe by name, or a JSON file. Raises :class:`RecipeError`."""
    shipped = HERE / f"{name_or_path}.json"
    path = shipped if shipped.is_file() else Path(name_or_path)
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise RecipeError(
            f"no recipe {name_or_path!r}: it is neither shipped ({', '.join(shipped_recipes())})"
            " nor a file"
        ) from error
    except ValueError as error:
        raise RecipeError(f"{path} is not JSON: {error}") from error
    unknown = sorted(set(values) - set(Recipe.model_fields))
    if unknown:
        known = ", ".join(Recipe.model_fields)
        raise RecipeError(f"{path}: a recipe has no {', '.join(unknown)}; known: {known}")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{path}: {error}") from error


def recipe_fields(section: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """Fields of a recipe, read from a section of a settings file.

    ``recipe = "laion5b-en"`` takes a shipped recipe or a file as it is, but for a ``threshold``
    beside it, which belongs to the model and not to the rules: the recipe is then named
    `laion5b-en@0.27`. A main section with a ``threshold`` alone does so with the default recipe.

    Any other section is a recipe of its own. Its name is ``name``, that of the section, or else its
    `name` field. It must not be that of a shipped recipe, so that a name always means the same
    rules. Raises :class:`RecipeError`.
    """
    fields = dict(section)
    taken = fields.pop("recipe", None)
    if taken is None and name is None and fields.keys() <= {"threshold"}:
        taken = DEFAULT
    if taken is not None:
        threshold = fields.pop("threshold", None)
        if fields:
            raise RecipeError(
                f"`recipe` takes {taken!r} as it is, but for a `threshold`: write "
                f"{', '.join(fields)} in a recipe of its own, without `recipe`"
            )
        recipe = load_recipe(taken)
        # What is not a number is refused with all other fields.
        number = isinstance(threshold, (int, float))
        return (recipe.at(threshold) if number else recipe).model_dump() | (
            {} if threshold is None else {"threshold": threshold}
        )
    if name is not None:
        if "name" in fields:
            raise RecipeError("the section's name is the recipe's name: leave `name` out")
        fields["name"] = name
    own = fields.get("name", "")
    if not own or own in shipped_recipes():
        what = f"{own!r} is a shipped recipe" if own else "it has no `name`"
        raise RecipeError(
            f"a recipe of your own needs a name of its own, but {what}; to use a shipped one, "
            'write: recipe = "NAME"'
        )
    return fields


def rows_where(table: pa.Table, where: str) -> NDArray[np.bool_]:
    """Whether each row meets the condition, bool (n,); an unknown result (NULL) does not.

    The condition sees one row at a time and no files, so that a pair's fate depends neither on its
    neighbours nor on the moment. Aggregates, windows, sub-queries and volatile functions such as
    ``random()`` are refused. Raises :class:`PredicateError`.
    """
    import duckdb

    numbered = table.append_column("file_row_number", pa.array(np.arange(len(table))))
    try:
        with _engine().cursor() as connection:
            condition = duckdb.SQLExpression(where)
            _refuse_what_is_not_of_the_row(where)
            met = connection.from_arrow(numbered).filter(condition)
            rows = met.project("file_row_number").fetchnumpy()["file_row_number"]
    except duckdb.Error as error:
        raise PredicateError(f"the condition {where!r}: {str(error).splitlines()[0]}") from error
    kept = np.zeros(len(table), dtype=np.bool_)
    kept[np.asarray(rows, dtype=np.int64)] = True
    return kept


@cache
def _engine() -> Any:
    """DuckDB for this process: starting it takes longer than a query over a part's rows."""
    import duckdb

    engine = duckdb.connect(config={"enable_external_access": "false"})
    # If it is still open when the interpreter ends, its bindings report leaks.
    atexit.register(engine.close)
    return engine


@cache
def _refuse_what_is_not_of_the_row(where: str) -> None:
    with _engine().cursor() as connection:
        rows = connection.execute(
            "select function_name from duckdb_functions() "
            "where stability is distinct from 'CONSISTENT'"
        ).fetchall()
    volatile = {name for (name,) in rows}
    for node in _nodes(_parsed(where)):
        if node.get("class") == "SUBQUERY":
            raise PredicateError(f"the condition {where!r} contains a sub-query")
        if node.get("class") == "COLUMN_REF":
            # Words such as current_date mean a moment, and look like columns.
            name = node["column_names"][-1]
            if name.lower() not in _COLUMNS and not _SCORE.fullmatch(name.lower()):
                raise PredicateError(f"the condition {where!r}: scored pairs have no column {name}")
        if node.get("class") == "FUNCTION" and node.get("function_name") == "age":
            raise PredicateError(f"the condition {where!r} calls age(), which may depend on today")
        if node.get("class") == "FUNCTION" and node.get("function_name") in volatile:
            raise PredicateError(
                f"the condition {where!r} calls {node['function_name']}(), whose result"
                " differs each time"
            )


@cache
def _parsed(where: str) -> Any:
    """A condition as DuckDB parses it; for one with an error of syntax, a tree without nodes of
    expressions."""
    with _engine().cursor() as connection:
        asked = f"select (\n{where}\n) as condition"
        ((tree,),) = connection.execute("select json_serialize_sql(?)", [asked]).fetchall()
    return json.loads(tree)


def _scores_in(where: str) -> list[str]:
    """The heads' columns that a condition names, in lower case."""
    columns = {
        node["column_names"][-1].lower()
        for node in _nodes(_parsed(where))
        if node.get("class") == "COLUMN_REF"
    }
    return sorted(filter(_SCORE.fullmatch, columns))


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)
