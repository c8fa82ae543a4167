"""The report's figures as PNG, for a light and a dark page. Imported only to draw: matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from laion_assets.funnel import StageCounts
from laion_assets.stats.facts import Bin, Facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES: Final = 4.6
"""Narrow, so that the text is legible on a phone's 360 px too."""
DPI: Final = 200

STAGE_NAMES: Final[Mapping[str, str]] = {
    "wat": "WAT records",
    "pairs": "Links",
    "unique_pairs": "Pairs",
    "images": "Unique pairs",
    "embeddings": "Images",
    "subset": "Embedded pairs",
}
"""What goes into each stage."""


@dataclass(frozen=True)
class Theme:
    """Colours of a page: accent for what is kept, pale or faded for what is not, warm for marks."""

    paper: str
    ink: str
    muted: str
    accent: str
    pale: str
    faded: str
    warm: str


LIGHT: Final = Theme("#ffffff", "#1f2730", "#66717d", "#2f6690", "#d4dbe2", "#b9c2cb", "#b4541f")
DARK: Final = Theme("#161a1f", "#e7eaed", "#98a3ae", "#6fa8d6", "#39424c", "#505b67", "#e2925c")


@dataclass(frozen=True)
class Figure:
    """``light`` and ``dark`` are PNG bytes; ``alt`` says in words what they show."""

    name: str
    title: str
    alt: str
    light: bytes
    dark: bytes


def draw(facts: Facts) -> list[Figure]:
    """All figures that the facts have data for, in the order of the page. Deterministic bytes."""
    made = [
        _funnel(facts),
        _similarity(facts),
        _text_length(facts),
        _image_sizes(facts),
        _bars(
            "nsfw",
            "Safety tags",
            "Embedded pairs by safety tag, before the drop rules",
            facts.nsfw,
        ),
        _bars(
            "language",
            "Language of the pairs",
            "Pairs that passed the text rules, by detected language",
            facts.languages[:8],
        ),
    ]
    return [figure for figure in made if figure is not None]


def _render(
    name: str, title: str, alt: str, height: float, paint: Callable[[Axes, Theme], None]
) -> Figure:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    images = []
    for theme in (LIGHT, DARK):
        style: dict[Any, Any] = {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "text.parse_math": False,
            "text.color": theme.ink,
            "axes.edgecolor": theme.muted,
            "axes.labelcolor": theme.muted,
            "xtick.color": theme.muted,
            "ytick.color": theme.muted,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
        with mpl.rc_context(style):
            canvas = Canvas(figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained")
            canvas.set_facecolor(theme.paper)
            axes = canvas.add_subplot()
            axes.set_facecolor(theme.paper)
            paint(axes, theme)
            buffer = io.BytesIO()
            # No software name and version in the file: equal facts give equal bytes.
            canvas.savefig(buffer, format="png", metadata={"Software": None})
            images.append(buffer.getvalue())
    return Figure(name, title, alt, *images)


def _compact(n: float) -> str:
    """1234 -> 1,234; 1234567 -> 1.23 M."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return f"{n:,.0f}"


def percent(share: float) -> str:
    """A share as a person would write it: 56 %, 0.4 %, under 0.1 %."""
    if share == 0:
        return "0 %"
    if share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.{1 if share < 0.1 else 0}f} %"


def _bare(axes: Axes) -> None:
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])


def _count_axis(axes: Axes, theme: Theme) -> None:
    """Three or four counts on the left, with hairlines instead of an axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _compact(value)))
    axes.grid(axis="y", color=theme.pale, linewidth=0.6)
    axes.set_axisbelow(True)


def _funnel(facts: Facts) -> Figure | None:
    stages: Sequence[StageCounts] = [counts for counts in facts.funnel if counts.n_in]
    if not stages:
        return None

    def paint(axes: Axes, theme: Theme) -> None:
        _bare(axes)
        axes.spines["left"].set_visible(False)
        axes.set_yticks([])
        for row, counts in enumerate(stages):
            share = counts.kept / counts.n_in
            axes.barh(row, 1, height=0.36, color=theme.pale)
            axes.barh(row, share, height=0.36, color=theme.accent)
            axes.text(0, row - 0.3, STAGE_NAMES[counts.stage], weight="bold", va="bottom")
            axes.text(
                1,
                row - 0.3,
                f"{_compact(counts.kept)} of {_compact(counts.n_in)} kept, {percent(share)}",
                ha="right",
                va="bottom",
                color=theme.muted,
            )
        axes.set_ylim(len(stages) - 0.7, -0.75)
        axes.set_xlim(0, 1)

    alt = "What each stage kept: " + "; ".join(
        f"{STAGE_NAMES[c.stage]}: {c.kept:,} of {c.n_in:,}" for c in stages
    )
    return _render("funnel", "The funnel", alt, 0.3 + 0.52 * len(stages), paint)


def _similarity(facts: Facts) -> Figure | None:
    bins, threshold = facts.similarity, facts.threshold
    if not bins:
        return None

    def paint(axes: Axes, theme: Theme) -> None:
        _count_axis(axes, theme)
        for item in bins:
            kept = threshold is None or item.low >= threshold - 1e-9
            axes.bar(
                item.low,
                item.n,
                width=(item.high - item.low) * 0.92,
                align="edge",
                color=theme.accent if kept else theme.faded,
            )
        axes.set_xlabel("cosine of image and text embedding")
        if threshold is not None:
            axes.axvline(threshold, color=theme.warm, linewidth=1.2)
            axes.annotate(
                f"threshold {threshold:g}",
                (threshold, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-4, 4),
                textcoords="offset points",
                ha="right",
                color=theme.warm,
            )

    alt = f"Histogram of {sum(item.n for item in bins):,} similarities" + (
        f", with the threshold at {threshold:g}" if threshold is not None else ""
    )
    return _render("similarity", "Similarity of image and text", alt, 2.5, paint)


def _clipped(bins: Sequence[Bin], share: float) -> tuple[list[Bin], int]:
    """The first bins that hold ``share`` of all values, and how many values are beyond."""
    total = sum(item.n for item in bins)
    kept: list[Bin] = []
    seen = 0
    for item in bins:
        if seen >= share * total:
            break
        kept.append(item)
        seen += item.n
    return kept, total - seen


def _text_length(facts: Facts) -> Figure | None:
    if not facts.text_length:
        return None
    bins, beyond = _clipped(facts.text_length, 0.99)
    median = facts.text_deciles[4] if facts.text_deciles else None

    def paint(axes: Axes, theme: Theme) -> None:
        _count_axis(axes, theme)
        for item in bins:
            axes.bar(
                item.low,
                item.n,
                width=(item.high - item.low) * 0.92,
                align="edge",
                color=theme.accent,
            )
        axes.set_xlabel("characters")
        axes.set_xlim(left=0)
        if median is not None:
            axes.axvline(median, color=theme.warm, linewidth=1.2)
            axes.annotate(
                f"median {median:.0f}",
                (median, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, 4),
                textcoords="offset points",
                color=theme.warm,
            )
        if beyond:
            axes.annotate(
                f"{_compact(beyond)} longer",
                (1.0, 0.06),
                xycoords="axes fraction",
                ha="right",
                color=theme.muted,
            )

    alt = "Histogram of text lengths" + (
        f"; the median is {median:.0f} characters" if median is not None else ""
    )
    return _render("text_length", "Length of the texts", alt, 2.5, paint)


def _image_sizes(facts: Facts) -> Figure | None:
    bins = facts.shorter_side
    if not bins:
        return None
    total = sum(item.n for item in bins)
    marks = [
        (pixels, sum(item.n for item in bins if item.low >= pixels) / total)
        for pixels in (256, 512, 1024)
    ]

    def paint(axes: Axes, theme: Theme) -> None:
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        _count_axis(axes, theme)
        axes.set_xscale("log", base=2)
        for item in bins:
            axes.bar(
                item.low,
                item.n,
                width=(item.high - item.low) * 0.94,
                align="edge",
                color=theme.accent,
            )
        # All three marks stay in sight, whatever the data.
        low, high = min(bins[0].low, 128), max(bins[-1].high, 2048)
        axes.set_xlim(low, high)
        ticks = [2**power for power in range(24) if low <= 2**power <= high]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("shorter side in pixels\n(lines: share of this size or larger)")
        for pixels, share in marks:
            axes.axvline(pixels, color=theme.warm, linewidth=0.8, linestyle=(0, (3, 3)))
            axes.annotate(
                percent(share),
                (pixels, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                color=theme.warm,
            )

    alt = "Histogram of image sizes: " + ", ".join(
        f"{percent(share)} have a shorter side of at least {pixels:,} pixels"
        for pixels, share in marks
    )
    return _render("image_sizes", "Size of the images", alt, 2.5, paint)


def _bars(name: str, title: str, what: str, values: Sequence[tuple[str, int]]) -> Figure | None:
    """Horizontal bars with their numbers; None for fewer than two, which a sentence says better."""
    if len(values) < 2:
        return None
    total = sum(n for _, n in values)
    labels = [value or "unknown" for value, _ in values]

    def paint(axes: Axes, theme: Theme) -> None:
        _bare(axes)
        axes.barh(range(len(values)), [n for _, n in values], height=0.6, color=theme.accent)
        axes.set_yticks(range(len(values)), labels=labels)
        for label in axes.get_yticklabels():
            label.set_color(theme.ink)
        for row, (_, n) in enumerate(values):
            axes.annotate(
                f"{_compact(n)}, {percent(n / total)}",
                (n, row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=theme.muted,
            )
        # Room for the numbers beside the longest bar.
        axes.set_xlim(0, max(n for _, n in values) * 1.4)
        axes.set_ylim(len(values) - 0.5, -0.5)

    numbers = "; ".join(f"{label}: {n:,}" for label, (_, n) in zip(labels, values, strict=True))
    return _render(name, title, f"{what}: {numbers}", 0.35 + 0.3 * len(values), paint)
