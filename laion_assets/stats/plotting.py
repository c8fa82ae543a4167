"""Drawing of the report's figures: themes, rendering as PNG, axes, bars, marks, and numbers.

What does not belong here: which figures there are, and what they show (``figures``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from laion_assets.filtering.figures import as_png
from laion_assets.stats.report_data import Bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES: Final = 4.6
"""Width of a figure: narrow, so that its text is legible on a phone's 360 px, too."""
DPI: Final = 200


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
    flow: str


LIGHT: Final = Theme(
    "#ffffff", "#1f2730", "#66717d", "#2f6690", "#d4dbe2", "#b9c2cb", "#b4541f", "#cfdfec"
)
DARK: Final = Theme(
    "#161a1f", "#e7eaed", "#98a3ae", "#6fa8d6", "#39424c", "#505b67", "#e2925c", "#274059"
)


@dataclass(frozen=True)
class Figure:
    """A figure for a light and for a dark page.

    ``light`` and ``dark`` are PNG bytes; ``alt`` describes them in words, ``columns`` and ``rows``
    hold their numbers.
    """

    name: str
    title: str
    alt: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    light: bytes
    dark: bytes

    @property
    def csv(self) -> str:
        """The numbers as a CSV file."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()


def render(
    name: str,
    title: str,
    alt: str,
    data: tuple[Sequence[str], Sequence[Sequence[object]]],
    height: float,
    paint: Callable[[Axes, Theme], None],
) -> Figure:
    """Draw a figure by ``paint``, once per theme; ``height`` in inches, ``data`` as for the CSV."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    images, place = [], None
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
            canvas = Canvas(
                figsize=(WIDTH_INCHES, height), dpi=DPI, layout=None if place else "constrained"
            )
            canvas.set_facecolor(theme.paper)
            axes = canvas.add_subplot()
            axes.set_facecolor(theme.paper)
            paint(axes, theme)
            if place:  # colours change no layout
                axes.set_position(place)
            images.append(as_png(canvas))
            place = axes.get_position()
    return Figure(name, title, alt, *data, *images)


def bare(axes: Axes) -> None:
    """Hide both axes: what stands beside the bars is enough."""
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])


def count_axis(axes: Axes, theme: Theme) -> None:
    """Label three or four counts on the left, with hairlines instead of an axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.grid(axis="y", color=theme.pale, linewidth=0.6)
    axes.set_axisbelow(True)


def label_rows(axes: Axes, theme: Theme, labels: Sequence[str]) -> None:
    """Name the rows of horizontal bars, from the top."""
    axes.set_yticks(range(len(labels)), labels=labels)
    for label in axes.get_yticklabels():
        label.set_color(theme.ink)


def note_bar(axes: Axes, theme: Theme, text: str, end: tuple[float, float], **style: Any) -> None:
    """Write ``text`` beside the end of a horizontal bar."""
    style = {"xytext": (5, 0), "color": theme.muted} | style
    axes.annotate(text, end, textcoords="offset points", va="center", **style)


def histogram(
    axes: Axes, bins: Sequence[Bin], colour: Callable[[Bin], str], share: float = 0.92
) -> None:
    """Draw a bar per bin, over ``share`` of the bin's width."""
    for item in bins:
        width = (item.high - item.low) * share
        axes.bar(item.low, item.n, width=width, align="edge", color=colour(item))


def outline(axes: Axes, theme: Theme, bins: Sequence[Bin], scale: float) -> None:
    """Draw a line over bins of equal width, their numbers times ``scale``."""
    by_low = {item.low: item.n for item in bins}
    lows, width = sorted(by_low), bins[0].high - bins[0].low
    count = round((lows[-1] - lows[0]) / width) + 1
    edges = [round(lows[0] + number * width, 6) for number in range(count + 1)]
    values = [scale * by_low.get(edge, 0) for edge in edges[:-1]]
    axes.stairs(values, edges, color=theme.ink, linewidth=1)


def mark(
    axes: Axes, theme: Theme, x: float, text: str, offset: float, align: str, **line: Any
) -> None:
    """Draw a vertical line at ``x``, and ``text`` above it, ``offset`` points to the right."""
    axes.axvline(x, color=theme.warm, **({"linewidth": 1.2} | line))
    axes.annotate(
        text,
        (x, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(offset, 4),
        textcoords="offset points",
        ha=align,
        color=theme.warm,
    )


def compact(n: float) -> str:
    """Write 1234 as 1,234 and 1234567 as 1.23 M."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return f"{n:,.0f}"


def rough(n: float) -> str:
    """Write a number below 10 with one decimal place, a larger one as :func:`compact` does."""
    return compact(n) if n >= 10 else f"{n:.1f}"


def percent(share: float) -> str:
    """Write a share as a person would: 56 %, 0.4 %, < 0.1 %."""
    if share == 0:
        return "0 %"
    if share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.{1 if share < 0.1 else 0}f} %"
