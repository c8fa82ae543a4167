"""The base of all options models, and the mark of the fields that change no result."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Frozen options; an unknown name is an error, since a misspelt one must not mean a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Operational:
    def __repr__(self) -> str:
        return "OPERATIONAL"


OPERATIONAL: Final = _Operational()
"""Marks a field that says how the work is done and not what is made: ``concurrency:
Annotated[int, OPERATIONAL]``. It is no part of a code version: changing it makes nothing stale."""


@cache
def operational_fields(model: type[BaseModel]) -> frozenset[str]:
    """Names of the fields that are marked :data:`OPERATIONAL`."""
    return frozenset(
        name
        for name, field in model.model_fields.items()
        if any(mark is OPERATIONAL for mark in field.metadata)
    )


def versioned(options: BaseModel) -> dict[str, Any]:
    """The options that change results, as JSON values."""
    return options.model_dump(mode="json", exclude=set(operational_fields(type(options))))
