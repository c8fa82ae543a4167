"""Figures and tables that show people what the filter does."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from laion_assets.download.preview import Sample, sheet
from laion_assets.download.shard_files import read_shard, tar_path
from laion_assets.filtering.plausible import counted
from laion_assets.filtering.recipe import Recipe
from laion_assets.filtering.similarities import PER_UNIT, Similarities
from laion_assets.filtering.subset import choose
from laion_assets.safety.tags import TAGS
from laion_assets.tables import PARTS, ROW_GROUP, batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOP_CATEGORIES: Final = 15
_BINS_DRAWN: Final = 10
"""Bins of the counts to a bin of the picture."""
_SHOWN: Final = ("url", "text", "key", "shard")
PICTURES: Final = 12
"""Number of pictures on each of the two sheets."""

Rows = Sequence[Mapping[str, Any]]


def similarity_histogram(found: Similarities, thresholds: Sequence[float] = ()) -> bytes:
    """Draw the distributions of real and of shuffled pairs' similarities; return a PNG.

    Of ``thresholds`` the first is the one in force, whose shares the title names.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    seen: list[float] = list(thresholds)
    drawn: Sequence[tuple[Any, str, dict[str, Any]]] = (
        (found.real, "pairs", {"fill": True, "color": "#5b7f95"}),
        (found.shuffled, "shuffled pairs", {"color": "#3a3a3a", "linewidth": 1.2}),
    )
    for counts, name, look in drawn:
        total = int(counts.sum())
        if not total:
            continue
        # The last bin of the counts, a cosine of 1 alone, joins the one before it.
        bins = np.append(counts[:-2], counts[-2:].sum()).reshape(-1, _BINS_DRAWN).sum(axis=1)
        edges = np.arange(len(bins) + 1) * _BINS_DRAWN / PER_UNIT - 1
        axes.stairs(bins / total, edges, label=f"{total:,} {name}", **look)
        filled = np.flatnonzero(bins)
        seen += [edges[filled[0]], edges[filled[-1] + 1]]
    for number, threshold in enumerate(thresholds):
        look = {"label": f"threshold {threshold:g}"} if not number else {"alpha": 0.35}
        axes.axvline(threshold, color="#b5432a", linewidth=1.2, **look)
    if seen:
        axes.legend(frameon=False, fontsize=9)
    axes.set_xlim(min(seen, default=0.0) - 0.02, max(seen, default=1.0) + 0.02)
    axes.set_xlabel("cosine similarity of image and text")
    axes.set_ylabel("share of the pairs")
    axes.set_title(_title(found, thresholds), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return as_png(figure)


def as_png(figure: Figure) -> bytes:
    """Draw a figure; equal data gives equal bytes, as no software's version is among them.

    ``savefig`` would lay the figure out in a pass of its own, which takes as long as drawing it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    picture = io.BytesIO()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    pixels.save(picture, "PNG", dpi=(figure.dpi, figure.dpi))
    return picture.getvalue()


def _title(found: Similarities, thresholds: Sequence[float]) -> str:
    total = int(found.real.sum())
    if not total or not thresholds:
        return f"{total:,} pairs"
    kept = found.at(thresholds[0])
    shuffled = f", {kept.shuffled:.1%} of shuffled ones" if found.shuffled.any() else ""
    return f"at or above the threshold: {kept.real:.1%} of {total:,} pairs{shuffled}"


def threshold_sheets(
    scored: Path, shards: Path, recipe: Recipe, threshold: float
) -> tuple[bytes, bytes]:
    """Draw the least similar pairs kept and the most similar ones below the threshold.

    Returns two JPEGs of at most 150 KB. Each picture is shown with its similarity and caption.
    Pictures that are tagged NSFW or UNSURE, or that a safety rule dropped, are not shown. The
    sheets are empty if the shards are gone.
    """
    kept, below = [], []
    for table in _tables(scored):
        taken, _ = choose(table, recipe, threshold)
        similarity = table["similarity"].to_numpy()
        shown = table["nsfw"].to_numpy() == "UNLIKELY"
        rows = taken[shown[taken]]
        kept.append(_take(table, rows[np.argsort(similarity[rows], kind="stable")]))
        rows = np.flatnonzero(shown & (similarity < threshold))
        below.append(_take(table, rows[np.argsort(-similarity[rows], kind="stable")]))
    return (
        sheet(_samples(kept, shards, lambda row: float(row["similarity"]))),
        sheet(_samples(below, shards, lambda row: -float(row["similarity"]))),
    )


def score_sheets(scored: Path, shards: Path, columns: Sequence[str]) -> dict[str, bytes]:
    """Draw, for each head's column, the pictures with the lowest and with the highest scores.

    Returns a JPEG by column, made as :func:`threshold_sheets` does: half of its pictures are from
    either end, in the order of their scores.
    """
    half = PICTURES // 2
    ends: dict[str, list[pa.Table]] = {column: [] for column in columns}
    for table in _tables(scored, [*_SHOWN, "nsfw", *columns]) if columns else ():
        shown = table["nsfw"].to_numpy() == "UNLIKELY"
        for column, found in ends.items():
            scores = table[column].to_numpy()
            rows = np.flatnonzero(shown & np.isfinite(scores))
            rows = rows[np.argsort(scores[rows], kind="stable")]
            found.append(_take(table, np.concatenate([rows[:half], rows[half:][-half:]]), column))
    sheets = {}
    for column, found in ends.items():
        known = sorted(
            (row for table in found for row in table.to_pylist()), key=itemgetter(column)
        )
        outer = [*known[:half], *known[half:][-half:]]
        sheets[column] = sheet(_pictures(outer, shards, column))
    return sheets


def _take(table: pa.Table, rows: Any, column: str = "similarity") -> pa.Table:
    return table.select([*_SHOWN, column]).take(pa.array(rows[:PICTURES]))


def _samples(
    tables: Iterable[pa.Table], shards: Path, order: Callable[[Mapping[str, Any]], float]
) -> list[Sample]:
    rows = sorted((row for table in tables for row in table.to_pylist()), key=order)[:PICTURES]
    return _pictures(rows, shards, "similarity")


def _pictures(rows: Rows, shards: Path, column: str) -> list[Sample]:
    """The rows' pictures with the column's value, without those whose picture is gone."""
    tars = {row["shard"]: tar_path(shards, row["shard"]) for row in rows}
    # Shards may have been rebuilt or deleted since they were embedded.
    urls = {shard: urls_of_shard(tar) for shard, tar in tars.items() if tar.exists()}
    return [
        Sample(tars[row["shard"]], row["key"], f"{row[column]:.3f} {row['text']}")
        for row in rows
        if urls.get(row["shard"], {}).get(row["key"]) == row["url"]
    ]


def urls_of_shard(tar: Path) -> dict[str, str]:
    """URL by key of a shard's rows."""
    table = read_shard(tar, ["key", "url"])
    return dict(zip(table["key"].to_pylist(), table["url"].to_pylist(), strict=True))


def kept_by_tag(scored: Path, subset: Path) -> Rows:
    """Number of pairs by safety tag, in all and in the subset."""
    all_of, kept = counted(scored, "nsfw"), counted(subset, "NSFW")
    return [{"tag": tag, "pairs": all_of.get(tag, 0), "kept": kept.get(tag, 0)} for tag in TAGS]


def tags_and_categories(tags: Mapping[str, int], nearest: Mapping[str, int]) -> tuple[Rows, Rows]:
    """Tables of the numbers of pairs by safety tag, and by the category nearest to the image."""
    most = list(nearest.items())[:TOP_CATEGORIES]
    return (
        [{"tag": tag, "pairs": tags.get(tag, 0)} for tag in TAGS],
        [{"nearest category": name, "pairs": n} for name, n in most],
    )


def _tables(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a folder's parts, a row group at a time: the named columns, or all."""
    for part in sorted(folder.glob(PARTS)):
        for batch in batches(part, columns, ROW_GROUP):
            yield pa.Table.from_batches([batch])
