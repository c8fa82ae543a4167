"""The image and the text index of one segment's subset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.knn.files import (
    IDS,
    IDS_GROUP_ROWS,
    IndexMismatchError,
    IndexSummary,
    index_path,
    new_index,
    versions,
    write_ids,
    write_index,
)
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.subset import MODALITIES, Modality, SubsetPart, blocks, subset_parts
from laion_assets.progress import Log, Progress, silent

__all__ = ["IndexOptions", "build_index"]


def build_index(
    subset: Path, out: Path, options: IndexOptions, *, model_key: str, log: Log = silent
) -> IndexSummary:
    """Index a `filtered_subset` folder into ``out``; row numbers run through its parts in order.

    An empty subset gives valid empty indices. The same subset gives the same bytes. Memory: one
    of the two indices at a time. Raises :class:`~laion_assets.knn.subset.SubsetError` if vectors
    and rows differ in number, :class:`IndexMismatchError` if the vectors differ in width.
    """
    parts = subset_parts(subset)
    d = _width(parts, options)
    n = write_ids(out, _ids(parts))
    for modality in MODALITIES:
        index = new_index(options.kind, d)
        progress = Progress(f"{modality} index", "vectors", n, log)
        for part in parts:
            for block in blocks(part.vectors(modality)):
                rows = np.arange(index.ntotal, index.ntotal + len(block), dtype=np.int64)
                index.add_with_ids(block, rows)
                progress.advance(len(block))
        write_index(index, index_path(out, modality))
    summary = IndexSummary(options.kind, n, d, model_key, versions())
    summary.write(out)
    return summary


def _width(parts: Sequence[SubsetPart], options: IndexOptions) -> int:
    widths: dict[int, tuple[int, Modality]] = {}
    for part in parts:
        for modality in MODALITIES:
            widths.setdefault(part.vectors(modality).shape[1], (part.number, modality))
    if len(widths) > 1:
        found = ", ".join(f"{d} (part {n}, {kind})" for d, (n, kind) in sorted(widths.items()))
        raise IndexMismatchError(f"{parts[0].folder}: vectors of different widths: {found}")
    return next(iter(widths), options.dimension)


def _ids(parts: Sequence[SubsetPart]) -> Iterator[pa.RecordBatch]:
    row = 0
    for part in parts:
        part_row = 0
        with pq.ParquetFile(part.parquet) as file:
            columns = ["SAMPLE_ID", "crawl", "segment"]
            for batch in file.iter_batches(IDS_GROUP_ROWS, columns=columns):
                n = batch.num_rows
                yield pa.record_batch(
                    [
                        pa.array(np.arange(row, row + n)),
                        batch["SAMPLE_ID"],
                        batch["crawl"],
                        batch["segment"],
                        pa.array(np.full(n, part.number, dtype=np.int32)),
                        pa.array(np.arange(part_row, part_row + n)),
                    ],
                    schema=IDS,
                )
                row += n
                part_row += n
