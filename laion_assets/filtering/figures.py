"""Figures of what the filter does, as PNG bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from laion_assets.filtering.parts import part_numbers, part_path


def similarity_histogram(scored: Path, threshold: float) -> bytes:
    """How similarities are distributed over all scored pairs, with the threshold drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    edges = np.round(np.arange(-1.0, 1.0 + 1e-9, 0.01), 2)
    bins = np.zeros(len(edges) - 1, dtype=np.int64)
    kept = 0
    for number in part_numbers(scored):
        part = pq.ParquetFile(part_path(scored, number)).read(columns=["similarity"])
        values = part["similarity"].to_numpy()
        bins += np.histogram(values, bins=edges)[0]
        kept += int((values >= threshold).sum())
    total = int(bins.sum())

    figure = Figure(figsize=(7, 3.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.stairs(bins, edges, fill=True, color="#5b7f95")
    axes.axvline(threshold, color="#b5432a", label=f"threshold {threshold:g}")
    filled = np.flatnonzero(bins)
    low, high = (edges[filled[0]], edges[filled[-1] + 1]) if total else (0.0, 1.0)
    axes.set_xlim(min(low, threshold) - 0.02, max(high, threshold) + 0.02)
    axes.set_xlabel("cosine similarity of image and text")
    axes.set_ylabel("pairs")
    share = f", {kept / total:.1%}" if total else ""
    axes.set_title(f"{kept:,} of {total:,} pairs at or above the threshold{share}", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
