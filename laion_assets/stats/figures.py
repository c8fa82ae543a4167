"""The report's figures: what each of them shows. Imported only to draw: it needs matplotlib.

What does not belong here: how bars, axes and pages look (``plotting``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from laion_assets.funnel import StageCounts
from laion_assets.layout import EMBEDDINGS, UNIQUE_PAIRS
from laion_assets.schemas import SCORE_PREFIX
from laion_assets.stats.plotting import (
    WIDTH_INCHES,
    Figure,
    Theme,
    bare,
    compact,
    count_axis,
    histogram,
    label_rows,
    mark,
    note_bar,
    outline,
    percent,
    render,
    rough,
)
from laion_assets.stats.report_data import Bin, Facts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGE_NAMES: Final[Mapping[str, str]] = {
    "wat": "WAT records",
    "pairs": "Links",
    UNIQUE_PAIRS: "Pairs",
    "images": "Unique pairs",
    EMBEDDINGS: "Images",
    "subset": "Embedded pairs",
}
"""Names of what goes into each stage."""

_LABEL_CHARS: Final = 28
"""Longest label of a bar; longer ones lose their middle."""


def draw(facts: Facts) -> list[Figure]:
    """Draw all figures that the facts have data for, in the order of the page.

    The same facts give the same bytes.
    """
    made = [
        _funnel(facts),
        _resolution(facts),
        _similarity(facts),
        *(_scores(column, bins, facts) for column, bins in facts.scores.items()),
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
            facts.kept("pairs"),
        ),
        _bars(
            "licences",
            "Licences",
            "Samples by the Creative Commons licence that their pages name",
            [(licence_name(value), n) for value, n in facts.licenses[:8]],
            facts.samples,
        ),
        _bars(
            "hosts", "Top hosts", "The hosts that most samples are from", facts.hosts, facts.samples
        ),
        _throughput(facts),
    ]
    return [figure for figure in made if figure is not None]


def licence_name(url: str) -> str:
    """Short name of a licence by its URL, such as `CC BY-SA 3.0 de`; `none named` for `?`."""
    found = re.search(r"creativecommons\.org/(?:licenses|publicdomain)/([a-z+-]+)/(.*?)/?$", url)
    if found is None:
        return "none named" if url == "?" else url
    name = {"zero": "CC0", "mark": "Public domain"}.get(found[1], f"CC {found[1].upper()}")
    return f"{name} {found[2].replace('/', ' ')}"


_TRUNK: Final = 2.15
"""Width of the funnel at its first stage, in inches."""
_FALL: Final = 0.86
"""Inches from one stage of the funnel to the next."""
_TOP: Final = 0.03
"""Inches above the funnel's first stage."""
_REASONS_SHOWN: Final = 3
"""Number of reject reasons that the funnel names per stage."""


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
            axes.text(0.05, top + 0.3, f"{compact(n)}{share}", va="top")

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
    return render("funnel", "The funnel", alt, data, height, paint)


def _turn_off(axes: Axes, theme: Theme, left: float, right: float, top: float) -> None:
    """Draw the band of what is refused, from the trunk to the words beside it."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    # A band is never thinner than a hairline, and never wider than its row.
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
    """Write how many a stage refused, and its most frequent reasons."""
    refused = counts.n_in - counts.kept
    most = sorted(counts.rejects.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{reason}  {compact(n)}" for reason, n in most[:_REASONS_SHOWN]]
    if len(most) > _REASONS_SHOWN:
        lines[-1] += f"  + {len(most) - _REASONS_SHOWN} more"
    left = _TRUNK + 0.22
    total = f"{compact(refused)} refused, {percent(refused / counts.n_in)}"
    axes.text(left, top + 0.1, total, va="top")
    axes.text(left, top + 0.27, "\n".join(lines), va="top", fontsize=8, color=theme.muted)


def _resolution(facts: Facts) -> Figure | None:
    """Shares of samples by size of the original image, beside LAION-400M's."""
    if not facts.samples:
        return None
    table = facts.statistics[1:]

    def paint(axes: Axes, theme: Theme) -> None:
        bare(axes)
        for row, item in enumerate(table):
            for offset, share, color in (
                (-0.17, item.share, theme.accent),
                (0.17, item.paper_share, theme.faded),
            ):
                axes.barh(row + offset, share, height=0.3, color=color)
                end = (share, row + offset)
                note_bar(axes, theme, percent(share), end, xytext=(4, 0), fontsize=8)
        label_rows(axes, theme, [item.what for item in table])
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
    return render("resolution", "Beside LAION-400M", alt, data, 2.9, paint)


def _throughput(facts: Facts) -> Figure | None:
    """Rows per second of each asset that counts what goes in, on a logarithmic scale."""
    runs = [run for run in facts.runs if run.per_second]
    if not runs:
        return None
    rates = [run.per_second or 0.0 for run in runs]

    def paint(axes: Axes, theme: Theme) -> None:
        bare(axes)
        axes.set_xscale("log")
        low = min(rates) / 4
        axes.barh(range(len(runs)), rates, height=0.6, left=low, color=theme.accent)
        label_rows(axes, theme, [run.asset for run in runs])
        axes.set_xticks([])
        axes.minorticks_off()
        for row, (run, rate) in enumerate(zip(runs, rates, strict=True)):
            text = f"{rough(rate)} /s, {rough(run.seconds)} s"
            note_bar(axes, theme, text, (rate + low, row))
        axes.set_xlim(low, max(rates) * (max(rates) / low) ** 0.75)
        axes.set_ylim(len(runs) - 0.5, -0.5)

    alt = "What each asset takes in per second, over all partitions: " + "; ".join(
        f"{run.asset}: {rate:,.1f}" for run, rate in zip(runs, rates, strict=True)
    )
    rows = [(r.asset, r.partitions, r.n_in, r.kept, r.seconds, r.per_second, r.bytes) for r in runs]
    columns = ("asset", "partitions", "n_in", "kept", "seconds", "per_second", "bytes")
    return render("throughput", "Throughput", alt, (columns, rows), 0.35 + 0.3 * len(runs), paint)


def _bins(bins: Sequence[Bin]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Columns and rows of a histogram's CSV."""
    return ("low", "high", "n"), [(item.low, item.high, item.n) for item in bins]


def _similarity(facts: Facts) -> Figure | None:
    """Histogram of all scored pairs' similarities, with the threshold and the shuffled pairs'.

    Shuffled pairs are drawn as if there were as many of them as of real ones.
    """
    bins, threshold, shuffled = facts.similarity, facts.threshold, facts.shuffled
    if not bins:
        return None
    pairs, mismatches = (sum(item.n for item in some) for some in (bins, shuffled))

    def paint(axes: Axes, theme: Theme) -> None:
        count_axis(axes, theme)

        def colour(item: Bin) -> str:
            kept = threshold is None or item.low >= threshold - 1e-9
            return theme.accent if kept else theme.faded

        histogram(axes, bins, colour)
        axes.set_xlabel("cosine of image and text embedding")
        if shuffled:
            outline(axes, theme, shuffled, pairs / mismatches)
            axes.text(
                1,
                1.01,
                "— shuffled pairs",
                transform=axes.transAxes,
                color=theme.ink,
                ha="right",
                va="bottom",
                fontsize=8,
            )
        if threshold is not None:
            mark(axes, theme, threshold, f"threshold {threshold:g}", -4, "right")

    alt = f"Histogram of {pairs:,} similarities" + (
        f", with the threshold at {threshold:g}" if threshold is not None else ""
    )
    if shuffled:
        alt += f", beside that of {mismatches:,} shuffled pairs"
    lows = {(item.low, item.high) for item in (*bins, *shuffled)}
    of_each = [{item.low: item.n for item in some} for some in (bins, shuffled)]
    rows = [(*ends, *(counts.get(ends[0], 0) for counts in of_each)) for ends in sorted(lows)]
    data = ("low", "high", "n", "shuffled"), rows
    return render("similarity", "Similarity of image and text", alt, data, 2.5, paint)


def _scores(column: str, bins: Sequence[Bin], facts: Facts) -> Figure | None:
    """Histogram of a head's scores: of all pairs, and within it of those that the subset took."""
    if not bins:
        return None
    head, kept = column.removeprefix(SCORE_PREFIX), facts.kept_scores.get(column, ())

    def paint(axes: Axes, theme: Theme) -> None:
        count_axis(axes, theme)
        histogram(axes, bins, lambda _: theme.faded)
        histogram(axes, kept, lambda _: theme.accent)
        axes.set_xlabel(f"score by the head {head} (dark: samples of the subset)")

    pairs, samples = (sum(item.n for item in some) for some in (bins, kept))
    alt = f"Histogram of {pairs:,} scores by the head {head}, {samples:,} of them of samples"
    of_each = [{(item.low, item.high): item.n for item in some} for some in (bins, kept)]
    ends = sorted({*of_each[0], *of_each[1]})
    rows = [(*edges, *(counts.get(edges, 0) for counts in of_each)) for edges in ends]
    data = ("low", "high", "pairs", "samples"), rows
    return render(column, f"Scores: {head}", alt, data, 2.5, paint)


def _clipped(bins: Sequence[Bin], share: float) -> tuple[list[Bin], int]:
    """The first bins that hold ``share`` of all values, and the number of values beyond them."""
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
    """Histogram of the samples' text lengths, without the longest hundredth."""
    if not facts.text_length:
        return None
    bins, beyond = _clipped(facts.text_length, 0.99)
    median = facts.text_deciles[4] if facts.text_deciles else None

    def paint(axes: Axes, theme: Theme) -> None:
        count_axis(axes, theme)
        histogram(axes, bins, lambda _: theme.accent)
        axes.set_xlabel("characters")
        axes.set_xlim(left=0)
        if median is not None:
            mark(axes, theme, median, f"median {median:.0f}", 4, "left")
        if beyond:
            axes.annotate(
                f"{compact(beyond)} longer",
                (1.0, 0.9),
                xycoords="axes fraction",
                ha="right",
                color=theme.muted,
            )

    alt = "Histogram of text lengths" + (
        f"; the median is {median:.0f} characters" if median is not None else ""
    )
    return render("text_length", "Length of the texts", alt, _bins(facts.text_length), 2.5, paint)


def _image_sizes(facts: Facts) -> Figure | None:
    """Histogram of the original images' shorter sides, with the shares of larger ones."""
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

        count_axis(axes, theme)
        axes.set_xscale("log", base=2)
        histogram(axes, bins, lambda _: theme.accent, share=0.94)
        # All three marks stay in sight, whatever the data.
        low, high = min(bins[0].low, 128), max(bins[-1].high, 2048)
        axes.set_xlim(low, high)
        ticks = [2**power for power in range(24) if low <= 2**power <= high]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("shorter side in pixels\n(lines: share of this size or larger)")
        line = {"linewidth": 0.8, "linestyle": (0, (3, 3))}
        for pixels, share in marks:
            mark(axes, theme, pixels, percent(share), 0, "center", **line)

    alt = "Histogram of image sizes: " + ", ".join(
        f"{percent(share)} have a shorter side of at least {pixels:,} pixels"
        for pixels, share in marks
    )
    return render("image_sizes", "Size of the images", alt, _bins(bins), 2.5, paint)


def _shortened(label: str) -> str:
    """Cut a label's middle if it would leave no room for the bars."""
    half = _LABEL_CHARS // 2
    return label if len(label) <= _LABEL_CHARS else f"{label[:half]}…{label[1 - half :]}"


def _bars(
    name: str, title: str, what: str, values: Sequence[tuple[str, int]], total: int | None = None
) -> Figure | None:
    """Horizontal bars with their numbers; None for fewer than two, which a sentence says better.

    Shares are of ``total``, by default of the sum.
    """
    if len(values) < 2:
        return None
    total = total or sum(n for _, n in values)
    labels = [value or "unknown" for value, _ in values]

    def paint(axes: Axes, theme: Theme) -> None:
        bare(axes)
        axes.barh(range(len(values)), [n for _, n in values], height=0.6, color=theme.accent)
        label_rows(axes, theme, [_shortened(label) for label in labels])
        for row, (_, n) in enumerate(values):
            note_bar(axes, theme, f"{compact(n)}, {percent(n / total)}", (n, row))
        # Leave room for the numbers beside the longest bar.
        axes.set_xlim(0, max(n for _, n in values) * 1.4)
        axes.set_ylim(len(values) - 0.5, -0.5)

    numbers = "; ".join(f"{label}: {n:,}" for label, (_, n) in zip(labels, values, strict=True))
    data = (
        (name, "n", "share"),
        [(label, n, n / total) for label, (_, n) in zip(labels, values, strict=True)],
    )
    return render(name, title, f"{what}: {numbers}", data, 0.35 + 0.3 * len(values), paint)
