"""What is concluded from what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from laion_assets.comparison.result import (
    ALL,
    JSON,
    MATCHING,
    RANDOM,
    SHUFFLED,
    SUMMARY,
    ZERO_SHOT,
    Arm,
    Between,
    Comparison,
    HeldOut,
    Interval,
    Measured,
    ZeroShot,
)

BETTER, WORSE, UNCLEAR = (0.02, 0.08), (-0.08, -0.02), (-0.01, 0.03)
Bounds = tuple[float, float]


def interval(bounds: Bounds) -> Interval:
    return Interval(mean=sum(bounds) / 2, low=bounds[0], high=bounds[1])


def arm(name: str, on_all: Bounds | None, on_matching: Bounds | None, value: Bounds) -> Arm:
    measured = [
        Measured(
            held_out=pool,
            measure=SUMMARY,
            value=interval(value),
            above_random=interval(above) if above else None,
        )
        for pool, above in ((ALL, on_all), (MATCHING, on_matching))
    ]
    return Arm(name=name, pairs=9, measured=measured)


def comparison(
    recipes: dict[str, tuple[Bounds, Bounds]],
    between: dict[tuple[str, str], tuple[Bounds, Bounds]],
    shuffled: Bounds = (0.05, 0.12),
) -> Comparison:
    return Comparison(
        model="m",
        samples=9,
        options={},
        matching=0.3,
        held_out=[
            HeldOut(name=name, pairs=100, chance={1: 0.01, 10: 0.1}) for name in (ALL, MATCHING)
        ],
        arms=[
            *(arm(name, *above, (0.5, 0.6)) for name, above in recipes.items()),
            arm(RANDOM, None, None, (0.4, 0.5)),
            arm(SHUFFLED, WORSE, WORSE, shuffled),
        ],
        between=[
            Between(recipe=one, other=other, held_out=name, above=interval(above))
            for (one, other), by_pool in between.items()
            for name, above in zip((ALL, MATCHING), by_pool, strict=True)
        ],
    )


BOTH = {"a": (BETTER, BETTER), "b": (BETTER, BETTER)}


@pytest.mark.parametrize(
    ("recipes", "between", "best", "said"),
    [
        (BOTH, {("a", "b"): (BETTER, BETTER)}, "a", "a trains a better model than every other arm"),
        (BOTH, {("a", "b"): (WORSE, WORSE)}, "b", "b trains a better model than every other arm"),
        (BOTH, {("a", "b"): (BETTER, UNCLEAR)}, None, "a and b train a better model than random"),
        (BOTH, {("a", "b"): (BETTER, WORSE)}, None, "No recipe is better than every other one"),
        # The pools do not agree.
        ({"a": (BETTER, WORSE)}, {}, None, "No recipe trains a better model than random pairs"),
        ({"a": (UNCLEAR, BETTER)}, {}, None, "No recipe trains a better model than random pairs"),
        ({"a": (BETTER, BETTER)}, {}, "a", "a trains a better model than random pairs"),
        (
            {"a": (UNCLEAR, BETTER), "b": (WORSE, WORSE)},
            {("a", "b"): (BETTER, BETTER)},
            None,
            "No recipe trains a better model than random pairs",
        ),
    ],
)
def test_a_difference_counts_if_both_pools_show_it_beyond_the_interval(
    recipes: dict[str, tuple[Bounds, Bounds]],
    between: dict[tuple[str, str], tuple[Bounds, Bounds]],
    best: str | None,
    said: str,
) -> None:
    found = comparison(recipes, between)
    assert found.best == best
    assert said in found.conclusion
    worse = [name for name, above in recipes.items() if above == (WORSE, WORSE)]
    assert ("a worse one than random pairs" in found.conclusion) == bool(worse)
    for name in worse:
        assert f"{name} trains a worse one" in found.conclusion


def test_nothing_is_concluded_if_shuffled_captions_teach_something() -> None:
    found = comparison(BOTH, {("a", "b"): (BETTER, BETTER)}, shuffled=(0.19, 0.25))
    assert not found.control_holds
    assert "nothing can be concluded" in found.conclusion


def test_a_control_that_is_above_chance_by_accident_holds() -> None:
    # Chance is 0.1: just beyond the interval of the control, as in one of twenty sound ones.
    assert comparison(BOTH, {("a", "b"): (BETTER, BETTER)}, shuffled=(0.11, 0.15)).control_holds


def named(zero_shot: Bounds) -> Comparison:
    """A comparison whose control finds what chance does but, maybe, zero-shot."""
    found = comparison(BOTH, {("a", "b"): (BETTER, BETTER)})
    measured = Measured(
        held_out=MATCHING, measure=ZERO_SHOT, value=interval(zero_shot), above_random=None
    )
    arms = [one.model_copy(update={"measured": [*one.measured, measured]}) for one in found.arms]
    classes = ZeroShot(classes={"cat": 30, "dog": 20}, left_out=[], chance=0.5)
    return found.model_copy(update={"arms": arms, "zero_shot": classes})


def test_shuffled_captions_may_teach_no_names() -> None:
    assert named((0.45, 0.55)).control_holds
    assert named((0.51, 0.6)).control_holds, "by accident"
    assert not named((0.7, 0.8)).control_holds
    assert "nothing can be concluded" in named((0.7, 0.8)).conclusion


def test_what_was_written_before_there_was_zero_shot_is_read(tmp_path: Path) -> None:
    found = comparison(BOTH, {("a", "b"): (BETTER, BETTER)})
    found.write(tmp_path)
    before = json.loads((tmp_path / JSON).read_text())
    del before["zero_shot"]
    (tmp_path / JSON).write_text(json.dumps(before))
    assert Comparison.read(tmp_path) == found
