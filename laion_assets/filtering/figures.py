"""Figures and tables that show people what the filter does."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from laion_assets.download.preview import Sample, sheet
from laion_assets.download.shard_files import read_shard, tar_path
from laion_assets.filtering.recipe import Recipe
from laion_assets.filtering.subset import choose
from laion_assets.safety.tags import TAGS
from laion_assets.tables import PARTS, ROW_GROUP, batches

TOP_CATEGORIES: Final = 15
PICTURES: Final = 12
"""Number of pictures on each of the two sheets."""

Rows = Sequence[Mapping[str, Any]]


def similarity_histogram(scored: Path, threshold: float | None = None) -> bytes:
    """Draw the distribution of all scored pairs' similarities, and the threshold; return a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    edges = np.round(np.arange(-1.0, 1.0 + 1e-9, 0.01), 2)
    bins = np.zeros(len(edges) - 1, dtype=np.int64)
    kept = 0
    for table in _tables(scored, "similarity"):
        values = table["similarity"].to_numpy()
        bins += np.histogram(values, bins=edges)[0]
        kept += int((values >= threshold).sum()) if threshold is not None else 0
    total = int(bins.sum())

    figure = Figure(figsize=(7, 3.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.stairs(bins, edges, fill=True, color="#5b7f95")
    filled = np.flatnonzero(bins)
    low, high = (edges[filled[0]], edges[filled[-1] + 1]) if total else (0.0, 1.0)
    title = f"{total:,} pairs"
    if threshold is not None:
        axes.axvline(threshold, color="#b5432a", label=f"threshold {threshold:g}")
        axes.legend(frameon=False)
        low, high = min(low, threshold), max(high, threshold)
        share = f", {kept / total:.1%}" if total else ""
        title = f"{kept:,} of {total:,} pairs at or above the threshold{share}"
    axes.set_xlim(low - 0.02, high + 0.02)
    axes.set_xlabel("cosine similarity of image and text")
    axes.set_ylabel("pairs")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


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


def _take(table: pa.Table, rows: Any) -> pa.Table:
    return table.select(["url", "text", "similarity", "key", "shard"]).take(
        pa.array(rows[:PICTURES])
    )


def _samples(
    tables: Iterable[pa.Table], shards: Path, order: Callable[[Mapping[str, Any]], float]
) -> list[Sample]:
    rows = sorted((row for table in tables for row in table.to_pylist()), key=order)[:PICTURES]
    tars = {row["shard"]: tar_path(shards, row["shard"]) for row in rows}
    # Shards may have been rebuilt or deleted since they were embedded.
    urls = {shard: urls_of_shard(tar) for shard, tar in tars.items() if tar.exists()}
    return [
        Sample(tars[row["shard"]], row["key"], f"{row['similarity']:.3f} {row['text']}")
        for row in rows
        if urls.get(row["shard"], {}).get(row["key"]) == row["url"]
    ]


def urls_of_shard(tar: Path) -> dict[str, str]:
    """URL by key of a shard's rows."""
    table = read_shard(tar, ["key", "url"])
    return dict(zip(table["key"].to_pylist(), table["url"].to_pylist(), strict=True))


def kept_by_tag(scored: Path, subset: Path) -> Rows:
    """Number of pairs by safety tag, in all and in the subset."""
    all_of, kept = _counts(scored, "nsfw"), _counts(subset, "NSFW")
    return [{"tag": tag, "pairs": all_of.get(tag, 0), "kept": kept.get(tag, 0)} for tag in TAGS]


def tags_and_categories(scored: Path) -> tuple[Rows, Rows]:
    """Number of pairs by safety tag, and by the category nearest to the image."""
    tags, nearest = _counts(scored, "nsfw"), _counts(scored, "nsfw_category_1")
    ordered = sorted(nearest.items(), key=lambda item: (-item[1], item[0]))
    return (
        [{"tag": tag, "pairs": tags.get(tag, 0)} for tag in TAGS],
        [{"nearest category": name, "pairs": n} for name, n in ordered[:TOP_CATEGORIES]],
    )


def _counts(folder: Path, column: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for table in _tables(folder, column):
        for value in pc.value_counts(table[column]).to_pylist():
            counts[value["values"]] = counts.get(value["values"], 0) + value["counts"]
    return counts


def _tables(folder: Path, *columns: str) -> Iterator[pa.Table]:
    """The rows of a folder's parts, a row group at a time: the named columns, or all."""
    for part in sorted(folder.glob(PARTS)):
        for batch in batches(part, columns or None, ROW_GROUP):
            yield pa.Table.from_batches([batch])
