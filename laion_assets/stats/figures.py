"""The report's figures as PNG, for a light and a dark page. Imported only to draw: matplotlib."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from laion_assets.funnel import StageCounts
from laion_assets.stats.report_data import Bin, Facts

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

_LABEL_CHARS: Final = 28


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
    """``light`` and ``dark`` are PNG bytes; ``alt`` says in words what they show, ``columns`` and
    ``rows`` in numbers."""

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


def draw(facts: Facts) -> list[Figure]:
    """All figures that the facts have data for, in the order of the page. Deterministic bytes."""
    made = [
        _funnel(facts),
        _resolution(facts),
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
        _bars(
            "licences",
            "Licences",
            "Samples by the Creative Commons licence that their pages name",
            [(licence_name(value), n) for value, n in facts.licenses[:8]],
        ),
        _bars("hosts", "Top hosts", "The hosts most samples are from", facts.hosts, facts.samples),
        _throughput(facts),
    ]
    return [figure for figure in made if figure is not None]


def licence_name(url: str) -> str:
    """`https://creativecommons.org/licenses/by-sa/3.0/de/` -> `CC BY-SA 3.0 de`."""
    found = re.search(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z+-]+)/(.*?)/?$", url)
    if found is None:
        return "none named" if url == "?" else url
    name = {"zero": "CC0", "mark": "Public domain"}.get(found[1], f"CC {found[1].upper()}")
    return f"{name} {found[2].replace('/', ' ')}"


def _render(
    name: str,
    title: str,
    alt: str,
    data: tuple[Sequence[str], Sequence[Sequence[object]]],
    height: float,
    paint: Callable[[Axes, Theme], None],
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
    return Figure(name, title, alt, *data, *images)


def _compact(n: float) -> str:
    """1234 -> 1,234; 1234567 -> 1.23 M."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return f"{n:,.0f}"


def _rough(n: float) -> str:
    return _compact(n) if n >= 10 else f"{n:.1f}"


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


_TRUNK: Final = 2.15
_FALL: Final = 0.86
_TOP: Final = 0.03
_REASONS_SHOWN: Final = 3
"""Of the funnel: inches that the first stage's number takes, and from one stage to the next."""


def _funnel(facts: Facts) -> Figure | None:
    """A Sankey diagram from links to samples: the trunk goes down, what is refused turns off."""
    stages = [counts for counts in facts.funnel if counts.n_in and counts.stage != "wat"]
    if not stages:
        return None
    first = stages[0].n_in
    levels = [counts.n_in for counts in stages] + [stages[-1].kept]
    names = [STAGE_NAMES[counts.stage] for counts in stages]
    names.append("Samples" if stages[-1].stage == "subset" else "Kept")
    height = _TOP + _FALL * len(stages) + 0.5

    def paint(axes: Axes, theme: Theme) -> None:
        axes.set_axis_off()
        axes.set_xlim(0, WIDTH_INCHES - 0.1)
        axes.set_ylim(height, 0)
        for row, counts in enumerate(stages):
            top = _TOP + row * _FALL
            wide, narrow = (_TRUNK * n / first for n in levels[row : row + 2])
            axes.fill([0, narrow, narrow, 0], [top] * 2 + [top + _FALL] * 2, color=theme.flow)
            if wide > narrow:
                _turn_off(axes, theme, narrow, wide, top)
                _refused(axes, theme, counts, top)
        for row, (name, n) in enumerate(zip(names, levels, strict=True)):
            top = _TOP + row * _FALL
            width = max(_TRUNK * n / first, 0.01)
            axes.fill([0, width, width, 0], [top] * 2 + [top + 0.05] * 2, color=theme.accent)
            share = f" · {percent(n / first)}" if row else ""
            axes.text(0.05, top + 0.12, f"{name}", weight="bold", va="top")
            axes.text(0.05, top + 0.3, f"{_compact(n)}{share}", va="top")

    alt = "From links to samples: " + "; ".join(
        f"{STAGE_NAMES[c.stage]}: {c.kept:,} of {c.n_in:,} kept" for c in stages
    )
    rows = [
        (counts.stage, reason, n, n / counts.n_in)
        for counts in facts.funnel
        if counts.n_in
        for _, reason, n in counts.rows()
    ]
    data = (("stage", "reason", "n", "share"), rows)
    return _render("funnel", "The funnel", alt, data, height, paint)


def _turn_off(axes: Axes, theme: Theme, left: float, right: float, top: float) -> None:
    """The band of what is refused, from the trunk to the words beside it."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    # Thinner than a hair is drawn as one; wider than its row is squeezed into it.
    thick = min(max(right - left, 0.012), 0.42)
    end, middle = _TRUNK + 0.16, (top + 0.12, top + 0.12 + thick)
    bend = left + max((end - left) * 0.5, 0.05)
    points = [
        (right, top),
        (right, middle[0]),
        (max(right, bend), middle[0]),
        (end, middle[0]),
        (end, middle[1]),
        (bend, middle[1]),
        (left, middle[1]),
        (left, top),
        (right, top),
    ]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    axes.add_patch(PathPatch(Path(points, codes), facecolor=theme.pale, edgecolor="none"))


def _refused(axes: Axes, theme: Theme, counts: StageCounts, top: float) -> None:
    refused = counts.n_in - counts.kept
    most = sorted(counts.rejects.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{reason}  {_compact(n)}" for reason, n in most[:_REASONS_SHOWN]]
    if len(most) > _REASONS_SHOWN:
        lines[-1] += f"  + {len(most) - _REASONS_SHOWN} more"
    left = _TRUNK + 0.22
    told = f"{_compact(refused)} refused, {percent(refused / counts.n_in)}"
    axes.text(left, top + 0.1, told, va="top")
    axes.text(left, top + 0.27, "\n".join(lines), va="top", fontsize=8, color=theme.muted)


def _resolution(facts: Facts) -> Figure | None:
    if not facts.samples:
        return None
    table = facts.statistics[1:]

    def paint(axes: Axes, theme: Theme) -> None:
        _bare(axes)
        for row, item in enumerate(table):
            for offset, share, color in (
                (-0.17, item.share, theme.accent),
                (0.17, item.paper_share, theme.faded),
            ):
                axes.barh(row + offset, share, height=0.3, color=color)
                axes.annotate(
                    percent(share),
                    (share, row + offset),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=theme.muted,
                )
        axes.set_yticks(range(len(table)), labels=[item.what for item in table])
        for label in axes.get_yticklabels():
            label.set_color(theme.ink)
        axes.set_xlim(0, 1.18 * max(max(item.share, item.paper_share) for item in table))
        axes.set_ylim(len(table) - 0.5, -1.05)
        for x, name, color in (
            (0.0, "this dataset", theme.accent),
            (0.3, "LAION-400M", theme.muted),
        ):
            axes.text(
                x, 1, f"■ {name}", transform=axes.transAxes, color=color, va="top", fontsize=8
            )

    alt = "Shares of samples by size of the original image: " + "; ".join(
        f"{item.what}: {percent(item.share)}, {percent(item.paper_share)} in LAION-400M"
        for item in table
    )
    rows = [(x.what, x.n, x.share, x.paper, x.paper_share) for x in facts.statistics]
    data = (("what", "samples", "share", "laion400m", "laion400m_share"), rows)
    return _render("resolution", "Beside LAION-400M", alt, data, 2.9, paint)


def _throughput(facts: Facts) -> Figure | None:
    """Rows a second of each asset that counts what goes in, on a logarithmic scale."""
    runs = [run for run in facts.runs if run.per_second]
    if not runs:
        return None
    rates = [run.per_second or 0.0 for run in runs]

    def paint(axes: Axes, theme: Theme) -> None:
        _bare(axes)
        axes.set_xscale("log")
        low = min(rates) / 4
        axes.barh(range(len(runs)), rates, height=0.6, left=low, color=theme.accent)
        axes.set_yticks(range(len(runs)), labels=[run.asset for run in runs])
        for label in axes.get_yticklabels():
            label.set_color(theme.ink)
        axes.set_xticks([])
        axes.minorticks_off()
        for row, (run, rate) in enumerate(zip(runs, rates, strict=True)):
            axes.annotate(
                f"{_rough(rate)} /s, {_rough(run.seconds)} s",
                (rate + low, row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=theme.muted,
            )
        axes.set_xlim(low, max(rates) * (max(rates) / low) ** 0.75)
        axes.set_ylim(len(runs) - 0.5, -0.5)

    alt = "What goes into each asset in a second, all partitions together: " + "; ".join(
        f"{run.asset}: {rate:,.1f}" for run, rate in zip(runs, rates, strict=True)
    )
    rows = [(r.asset, r.partitions, r.n_in, r.kept, r.seconds, r.per_second, r.bytes) for r in runs]
    columns = ("asset", "partitions", "n_in", "kept", "seconds", "per_second", "bytes")
    return _render("throughput", "Throughput", alt, (columns, rows), 0.35 + 0.3 * len(runs), paint)


def _bins(bins: Sequence[Bin]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    return ("low", "high", "n"), [(item.low, item.high, item.n) for item in bins]


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
    return _render("similarity", "Similarity of image and text", alt, _bins(bins), 2.5, paint)


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
                (1.0, 0.9),
                xycoords="axes fraction",
                ha="right",
                color=theme.muted,
            )

    alt = "Histogram of text lengths" + (
        f"; the median is {median:.0f} characters" if median is not None else ""
    )
    return _render("text_length", "Length of the texts", alt, _bins(facts.text_length), 2.5, paint)


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
    return _render("image_sizes", "Size of the images", alt, _bins(bins), 2.5, paint)


def _shortened(label: str) -> str:
    """Without its middle if it would leave no room for the bars."""
    half = _LABEL_CHARS // 2
    return label if len(label) <= _LABEL_CHARS else f"{label[:half]}…{label[1 - half :]}"


def _bars(
    name: str, title: str, what: str, values: Sequence[tuple[str, int]], total: int | None = None
) -> Figure | None:
    """Horizontal bars with their numbers; None for fewer than two, which a sentence says better.

    ``total`` is what shares are of, if not the sum.
    """
    if len(values) < 2:
        return None
    total = total or sum(n for _, n in values)
    labels = [value or "unknown" for value, _ in values]

    def paint(axes: Axes, theme: Theme) -> None:
        _bare(axes)
        axes.barh(range(len(values)), [n for _, n in values], height=0.6, color=theme.accent)
        axes.set_yticks(range(len(values)), labels=[_shortened(label) for label in labels])
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
    data = (
        (name, "n", "share"),
        [(label, n, n / total) for label, (_, n) in zip(labels, values, strict=True)],
    )
    return _render(name, title, f"{what}: {numbers}", data, 0.35 + 0.3 * len(values), paint)
