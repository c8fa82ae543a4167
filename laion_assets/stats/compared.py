"""The figure of a comparison of recipes. Imported only to draw: it needs matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from laion_assets.comparison.result import ALL, MATCHING, SUMMARY, Comparison
from laion_assets.layout import RECIPE_COMPARISON
from laion_assets.stats.plotting import Figure, Theme, label_rows, percent, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW: Final = 0.48
"""Inches of height for each arm."""
_AROUND: Final = 0.95
_APART: Final = 0.16
"""Distance of the two pools' marks, in rows."""
_LABEL_CHARS: Final = 28


def figure_of(comparison: Comparison) -> Figure:
    """Draw recall at 10 of each arm with its interval, on both held-out pools."""
    pools = {one.name: one for one in comparison.held_out}
    arms = comparison.arms

    def paint(axes: Axes, theme: Theme) -> None:
        colours = {MATCHING: theme.accent, ALL: theme.warm}
        for name, shift in ((MATCHING, -_APART), (ALL, _APART)):
            found = [arm.on(name).value for arm in arms]
            ends = (
                [one.mean - min(one.low, one.mean) for one in found],
                [max(one.high, one.mean) - one.mean for one in found],
            )
            axes.errorbar(
                [one.mean for one in found],
                [row + shift for row in range(len(arms))],
                xerr=ends,
                fmt="o",
                markersize=4,
                linewidth=1.4,
                capsize=2.5,
                color=colours[name],
                label=f"{name} held-out pairs ({pools[name].pairs:,})",
            )
            axes.axvline(pools[name].chance[10], color=colours[name], linewidth=0.9, linestyle=":")
        label_rows(axes, theme, [_label(arm.name) for arm in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)  # the first on top
        axes.set_xlim(left=0)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=theme.pale, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{SUMMARY}, with 95 % intervals; dotted: chance")
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=1,
            frameon=False,
            fontsize=8,
            labelcolor=theme.muted,
        )

    said = "; ".join(f"{arm.name} {percent(arm.on(MATCHING).value.mean)}" for arm in arms)
    columns = ("trained_on", "held_out", "mean", "low", "high", "above_random")
    rows = [
        (
            arm.name,
            name,
            *(arm.on(name).value.model_dump().values()),
            apart.mean if (apart := arm.on(name).above_random) else "",
        )
        for arm in arms
        for name in pools
    ]
    return render(
        RECIPE_COMPARISON,
        "What each recipe teaches a small model",
        f"Held-out pairs found among the ten nearest, of matching ones: {said}",
        (columns, rows),
        _AROUND + _ROW * len(arms),
        paint,
    )


def _label(name: str) -> str:
    return name if len(name) <= _LABEL_CHARS else f"{name[: _LABEL_CHARS - 1]}…"
