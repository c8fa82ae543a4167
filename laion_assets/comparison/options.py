"""Options of the comparison of recipes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from laion_assets.options import ADDED, OPERATIONAL, Options


class ComparisonOptions(Options):
    """How recipes are compared; docs/recipe-comparison.md has them as a table."""

    pool: int = Field(
        500_000,
        ge=1,
        description="Largest number of scored pairs that are looked at, about; of a larger lake,"
        " segments by a hash of their names, and of these a share by a hash of the picture",
    )
    held_out_share: float = Field(
        0.1, gt=0, lt=1, description="Share of these pairs that no arm trains on"
    )
    held_out: int = Field(
        5_000, ge=100, description="Largest number of held-out pairs that are searched at once"
    )
    samples: int = Field(
        20_000,
        ge=1,
        description="Largest number of pairs that each arm trains on; all train on as many as the"
        " recipe with the fewest has",
    )
    least: int = Field(1_000, ge=2, description="A recipe with fewer pairs to train on is refused")
    seeds: int = Field(
        5, ge=5, description="Trainings of each arm, each with other pairs, weights and order"
    )
    steps: int = Field(300, ge=1, description="Optimiser steps of a training")
    batch: int = Field(256, ge=2, description="Pairs in a step")
    width: int = Field(128, ge=1, description="Width of the text model's token vectors")
    rate: float = Field(3e-3, gt=0, description="Highest learning rate")
    classes: Annotated[list[str], ADDED] = Field(
        [],
        description="Names of things that held-out images are classified by, zero-shot; an empty"
        " list classifies none",
    )
    device: Annotated[str, OPERATIONAL] = Field(
        "auto", description="Device, as in [clip]: cpu, cuda, cuda:1 …"
    )

    @field_validator("classes")
    @classmethod
    def _are_several(cls, classes: list[str]) -> list[str]:
        if wrong := [name for name in classes if not name or name != name.strip()]:
            raise ValueError(f"blank, or with white space around it: {wrong}")
        if len({name.lower() for name in classes}) < len(classes):
            raise ValueError(f"a class is listed twice: {', '.join(classes)}")
        if len(classes) == 1:
            raise ValueError(f"{classes[0]} is the only class, and 2 are needed to choose from")
        return classes

    @model_validator(mode="after")
    def _fits(self) -> ComparisonOptions:
        if self.batch > self.least:
            raise ValueError(
                f"batch {self.batch} is more than least {self.least}: a batch has no pair twice"
            )
        if self.least > self.samples:
            raise ValueError(f"least {self.least} is more than samples {self.samples}")
        return self
