"""Similarity thresholds by model: a cosine has a meaning only for the model that it comes from.

A table names a model as `MODEL/PRETRAINED`, or as `MODEL/PRETRAINED@VERSION` where the same name
may stand for other weights: a file, a folder, a model that this package ships. A version is
:attr:`~laion_assets.clip.model.ClipModel.version`, by which the same weights are known wherever
they lie. A name alone is for weights that are published under it for good.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, Protocol, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

from laion_assets.clip.options import LOCAL

TABLE: Final = Path(__file__).with_name("thresholds.json")
_VERSIONED: Final = re.compile(r"(.+)@([0-9a-f]{16})")
_FILE: Final = re.compile(r"[/\\]|\.(pt|pth|bin|ckpt|safetensors)$")

Entry = TypeVar("Entry")


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
    """The shipped thresholds by model."""
    return TypeAdapter(dict[str, Threshold]).validate_python(
        json.loads(TABLE.read_text(encoding="utf-8"))
    )


def table_entry(key: str) -> str:
    """The model's threshold in the table, as text; empty if it has none."""
    entry = entry_for(thresholds(), key)
    return str(entry.threshold) if entry else ""


def entry_for(known: Mapping[str, Entry], model: str, version: str | None = None) -> Entry | None:
    """The entry of a table for a model; None if it has none.

    ``model``: `MODEL/PRETRAINED`. ``version``: None if the model is not loaded yet. Then its name
    decides, and what is found counts once the version is known to be the entry's. A file or folder
    may hold the weights of any entry with a version, but for those of this package's own models.
    """
    moved = None
    for key, entry in known.items():
        name, of = _parsed(key)
        if (version == of) if version and of else (name == model):
            return entry
        if of and not version and key not in thresholds():
            moved = entry
    return moved if may_change(model) else None


def may_change(key: str) -> bool:
    """Whether a table's name of a model lacks the version of weights that may be others tomorrow:
    those of a folder or a file."""
    name, version = _parsed(key)
    pretrained = name.partition("/")[2]
    return not version and (name.startswith(LOCAL) or bool(_FILE.search(pretrained)))


def unknown(known: Mapping[str, object], model: str, version: str | None) -> str:
    """What a table does not know of a model: a part of a message."""
    if not version:
        return f"{model!r} (only for {', '.join(sorted(known))})"
    versions = sorted(of for name, of in map(_parsed, known) if of and name == model)
    only = f"version {', '.join(versions)}" if versions else ", ".join(sorted(known))
    return f"{model!r} of version {version} (only for {only})"


def threshold_for(
    model: str, recipe: HasThreshold | None = None, *, version: str | None = None
) -> float:
    """The recipe's own threshold if it has one, else the table's for the model.

    ``model``, ``version``: as :func:`entry_for` has them. Raises :class:`UnknownThresholdError` if
    there is neither.
    """
    if recipe is not None and recipe.threshold is not None:
        return recipe.threshold
    entry = entry_for(thresholds(), model, version)
    if entry is None:
        raise UnknownThresholdError(
            f"no similarity threshold is known for {unknown(thresholds(), model, version)}: "
            "let `laion-assets calibrate` propose one from embedded pairs, and set it as "
            "`threshold` in the recipe; see docs/own-model.md"
        )
    return entry.threshold


def _parsed(key: str) -> tuple[str, str | None]:
    match = _VERSIONED.fullmatch(key)
    return (match[1], match[2]) if match else (key, None)
