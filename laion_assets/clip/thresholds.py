"""Similarity thresholds by model: a cosine has a meaning only for the model that it comes from."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from pydantic import BaseModel, Field, TypeAdapter

TABLE: Final = Path(__file__).with_name("thresholds.json")


class UnknownThresholdError(LookupError):
    """A model has no known threshold; the message says how to set one."""


class Threshold(BaseModel, frozen=True, extra="forbid"):
    """The lowest cosine of image and text at which a pair is kept, and the source of that rule."""

    threshold: float = Field(ge=-1, le=1)
    source: str = Field(min_length=1)


class HasThreshold(Protocol):
    """Anything that may have a threshold of its own, such as a recipe."""

    @property
    def threshold(self) -> float | None: ...


@cache
def thresholds() -> dict[str, Threshold]:
    """The shipped thresholds by model (`MODEL/PRETRAINED`)."""
    return TypeAdapter(dict[str, Threshold]).validate_python(
        json.loads(TABLE.read_text(encoding="utf-8"))
    )


def table_entry(key: str) -> str:
    """The model's threshold in the table, as text; empty if it has none."""
    entry = thresholds().get(key)
    return str(entry.threshold) if entry else ""


def threshold_for(key: str, recipe: HasThreshold | None = None) -> float:
    """The recipe's own threshold if it has one, else the table's for the model.

    Raises :class:`UnknownThresholdError` if there is neither.
    """
    if recipe is not None and recipe.threshold is not None:
        return recipe.threshold
    known = thresholds()
    if key not in known:
        raise UnknownThresholdError(
            f"no similarity threshold is known for {key!r} (known: {', '.join(sorted(known))}): "
            "let `laion-assets calibrate` propose one from embedded pairs, and set it as "
            "`threshold` in the recipe; see docs/own-model.md"
        )
    return known[key].threshold
