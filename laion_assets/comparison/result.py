"""What a comparison found, as it is kept: figures over all pairs, and nothing of any pair."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel

from laion_assets.files import write_text

JSON: Final = "comparison.json"
CSV: Final = "comparison.csv"
PLOT: Final = "comparison.png"

RANDOM: Final = "random"
SHUFFLED: Final = "shuffled"
CONTROLS: Final = (RANDOM, SHUFFLED)
"""The arms that are no recipes."""

ALL: Final = "all"
MATCHING: Final = "matching"
"""The held-out pools: all pairs, and those whose similarity reaches a threshold."""

SUMMARY: Final = "recall@10"
MEASURES: Final = (
    "text to image @1",
    "text to image @10",
    "image to text @1",
    "image to text @10",
    SUMMARY,
)
"""Shares of held-out pairs whose other half is the nearest, or among the ten nearest ones; the last
is the mean of both directions."""

ZERO_SHOT: Final = "zero-shot"
"""Mean over classes of the share of images whose class's name is the nearest one, of the matching
held-out pairs whose captions name one class."""

_BOTH: Final = "beyond the interval in both pools"


class Interval(BaseModel, frozen=True):
    """A mean over seeds and held-out pairs, and its 95 % interval: that of resamples of both,
    widened for there being few seeds."""

    mean: float
    low: float
    high: float


class Measured(BaseModel, frozen=True):
    """A measure of an arm, on one of the held-out pools."""

    held_out: str
    measure: str
    value: Interval
    above_random: Interval | None
    """Difference from `random`, paired by seed and pair; None for `random` itself."""


class Arm(BaseModel, frozen=True):
    """A recipe, by its title, or a control."""

    name: str
    pairs: int
    """How many it could draw from."""
    measured: list[Measured]

    @property
    def is_recipe(self) -> bool:
        return self.name not in CONTROLS

    def on(self, held_out: str, measure: str = SUMMARY) -> Measured:
        return next(
            one for one in self.measured if (one.held_out, one.measure) == (held_out, measure)
        )

    @property
    def verdict(self) -> str:
        """`better` or `worse` than `random` if both pools say so beyond the interval."""
        apart = [self.on(name).above_random for name in (ALL, MATCHING)]
        return _verdict([one for one in apart if one])


class HeldOut(BaseModel, frozen=True):
    """A held-out pool."""

    name: str
    pairs: int
    chance: Mapping[int, float]
    """Recall, at 1 and at 10, of a guess."""


class ZeroShot(BaseModel, frozen=True):
    """The classes that held-out images were classified by."""

    classes: Mapping[str, int]
    """Labelled matching held-out pairs, by class."""
    left_out: list[str]
    """Classes that too few captions name."""
    chance: float
    """Mean over classes of what a guess finds."""

    @property
    def pairs(self) -> int:
        return sum(self.classes.values())


class Between(BaseModel, frozen=True):
    """How much better a recipe is than another one, by the summary."""

    recipe: str
    other: str
    held_out: str
    above: Interval


class Comparison(BaseModel, frozen=True):
    """A whole comparison."""

    model: str
    """Model that the images' vectors are of."""
    samples: int
    """Pairs that each arm trained on."""
    options: Mapping[str, Any]
    matching: float
    held_out: list[HeldOut]
    arms: list[Arm]
    between: list[Between]
    zero_shot: ZeroShot | None = None
    """None if no classes were set."""

    @property
    def best(self) -> str | None:
        """The recipe that is better than every other one, and than `random`, in both pools."""
        for arm in self.arms:
            others = [one for one in self.arms if one.is_recipe and one != arm]
            if (
                arm.is_recipe
                and arm.verdict == "better"
                and all(self._order(arm.name, other.name) == "better" for other in others)
            ):
                return arm.name
        return None

    def _order(self, recipe: str, other: str) -> str:
        apart = [
            one.above
            if one.recipe == recipe
            else Interval(mean=-one.above.mean, low=-one.above.high, high=-one.above.low)
            for one in self.between
            if {one.recipe, one.other} == {recipe, other}
        ]
        return _verdict(apart)

    @property
    def control_holds(self) -> bool:
        """Whether `shuffled` found no more than chance does, in both pools and zero-shot.

        What it finds has to be above chance by twice the interval. By once, one sound comparison
        in twenty would not hold.
        """
        shuffled = next(arm for arm in self.arms if arm.name == SHUFFLED)
        found = [(shuffled.on(one.name).value, one.chance[10]) for one in self.held_out]
        if self.zero_shot:
            found.append((shuffled.on(MATCHING, ZERO_SHOT).value, self.zero_shot.chance))
        return all(value.mean - 2 * (value.mean - value.low) <= chance for value, chance in found)

    @property
    def conclusion(self) -> str:
        """The result, in a sentence."""
        if not self.control_holds:
            return (
                "The arm with shuffled captions found more than chance does, so that nothing can be"
                " concluded."
            )
        worse = self._recipes("worse")
        ending = f" {_train(worse)} a worse one than random pairs, {_BOTH}." if worse else ""
        better = self._recipes("better")
        if not better:
            return f"No recipe trains a better model than random pairs, {_BOTH}.{ending}"
        if self.between and self.best:
            return f"{self.best} trains a better model than every other arm, {_BOTH}.{ending}"
        found = f"{_train(better)} a better model than random pairs, {_BOTH}."
        if self.between:
            found += " No recipe is better than every other one."
        return found + ending

    def _recipes(self, verdict: str) -> list[str]:
        return [arm.name for arm in self.arms if arm.is_recipe and arm.verdict == verdict]

    def table(self) -> list[dict[str, Any]]:
        """A row for each arm and pool, for people."""
        return [
            {
                "trained on": arm.name,
                "could draw from": arm.pairs,
                "held-out pairs": one.name,
                **{measure: arm.on(one.name, measure).value.mean for measure in MEASURES},
                "above random": _readable(arm.on(one.name).above_random),
                **self._zero_shot(arm, one.name),
            }
            for one in self.held_out
            for arm in self.arms
        ]

    def _zero_shot(self, arm: Arm, held_out: str) -> dict[str, str]:
        if not self.zero_shot:
            return {}
        above = f"{ZERO_SHOT} above random"
        if held_out != MATCHING:
            return {ZERO_SHOT: "", above: ""}
        found = arm.on(MATCHING, ZERO_SHOT)
        return {ZERO_SHOT: f"{found.value.mean:.3f}", above: _readable(found.above_random)}

    def write(self, out: Path) -> None:
        """Write ``comparison.json`` and ``comparison.csv``."""
        write_text(out / JSON, self.model_dump_json(indent=1) + "\n")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = ("mean", "low", "high")
        apart = [f"above_random_{column}" for column in columns]
        writer.writerow(["trained_on", "pairs", "held_out", "measure", *columns, *apart])
        for arm in self.arms:
            for one in arm.measured:
                values = [
                    getattr(found, column) if found else ""
                    for found in (one.value, one.above_random)
                    for column in columns
                ]
                writer.writerow([arm.name, arm.pairs, one.held_out, one.measure, *values])
        write_text(out / CSV, text.getvalue())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what :meth:`write` wrote."""
        return cls.model_validate_json((folder / JSON).read_bytes())


def _train(names: list[str]) -> str:
    return f"{' and '.join(names)} {'train' if len(names) > 1 else 'trains'}"


def _verdict(apart: list[Interval]) -> str:
    if apart and all(one.low > 0 for one in apart):
        return "better"
    if apart and all(one.high < 0 for one in apart):
        return "worse"
    return "unclear"


def _readable(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.mean:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
