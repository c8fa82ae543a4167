"""The table of similarity thresholds: a cosine means something only for the model it comes from."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from pydantic import BaseModel, Field, TypeAdapter

TABLE: Final = Path(__file__).with_name("thresholds.json")


class UnknownThresholdError(LookupError):
    """No threshold is known for a model; the message says how to set one."""


class Threshold(BaseModel, frozen=True, extra="forbid"):
    """The lowest cosine of image and text at which a pair is kept, and who says so."""

    threshold: float = Field(ge=-1, le=1)
    source: str = Field(min_length=1)


class HasThreshold(Protocol):
    """Anything that may bring a threshold of its own, such as a recipe."""

    @property
    def threshold(self) -> float | None: ...


@cache
def thresholds() -> dict[str, Threshold]:
    """The shipped table, by `MODEL/PRETRAINED`."""
    return TypeAdapter(dict[str, Threshold]).validate_python(
        json.loads(TABLE.read_text(encoding="utf-8"))
    )


def table_entry(key: str) -> str:
    """What the table says of a model, as text; empty if it has no entry."""
    entry = thresholds().get(key)
    return str(entry.threshold) if entry else ""


def threshold_for(key: str, recipe: HasThreshold | None = None) -> float:
    """The recipe's own threshold if it has one, else the model's of the table.

    Raises :class:`UnknownThresholdError` if there is neither.
    """
    if recipe is not None and recipe.threshold is not None:
        return recipe.threshold
    known = thresholds()
    if key not in known:
        raise UnknownThresholdError(
            f"no similarity threshold is known for {key!r} (known: {', '.join(sorted(known))}): "
            f"set `threshold` in the recipe, or add the model with a source to {TABLE}"
        )
    return known[key].threshold
