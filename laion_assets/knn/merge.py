"""One index over many segments, merged from the segments' own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_assets.knn.files import (
    IDS_GROUP_ROWS,
    IndexMismatchError,
    IndexSummary,
    index_path,
    new_index,
    versions,
    write_ids,
    write_index,
)
from laion_assets.knn.subset import MODALITIES
from laion_assets.progress import Log, Progress, silent

T = TypeVar("T", str, int)


def merge_indices(
    parts: Sequence[tuple[str, str, Path]], out: Path, *, log: Log = silent
) -> IndexSummary:
    """Merge ``(crawl, segment, index_dir)`` into ``out``, in sorted order whatever order is given.

    Rows are numbered anew through all segments; `part` and `part_row` stay the segment's own.
    Memory: one merged index at a time, and the segment being added. Raises ``ValueError`` for no
    parts, :class:`IndexMismatchError` if kind, model or width differ, or if an index and its ids
    differ in size.
    """
    if not parts:
        raise ValueError("there is no index to merge")
    folders = [folder for _, _, folder in sorted(parts, key=lambda part: part[:2])]
    summaries = [IndexSummary.read(folder) for folder in folders]
    kind = _the_one("kind", [summary.kind for summary in summaries])
    model = _the_one("model", [summary.model for summary in summaries])
    # An empty subset has no vectors that would tell its true width.
    filled = [summary for summary in summaries if summary.n]
    d = _the_one("width", [summary.d for summary in filled or summaries[:1]])
    n = write_ids(out, _ids(folders))
    for modality in MODALITIES:
        merged = new_index(kind, d)
        progress = Progress(f"merged {modality} index", "segments", len(folders), log)
        for folder, summary in zip(folders, summaries, strict=True):
            if summary.n:
                _add(merged, index_path(folder, modality), summary.n)
            progress.advance()
        if merged.ntotal != n:
            raise IndexMismatchError(f"{merged.ntotal} {modality} vectors for {n} ids")
        write_index(merged, index_path(out, modality))
    summary = IndexSummary(kind, n, d, model, versions())
    summary.write(out)
    return summary


def _the_one(what: str, values: Sequence[T]) -> T:
    distinct = sorted({str(value) for value in values})
    if len(distinct) > 1:
        raise IndexMismatchError(f"indices of different {what}: {', '.join(distinct)}")
    return values[0]


def _add(merged: object, path: Path, n: int) -> None:
    import faiss

    # Read whole: merge_from empties what it merges, which a memory-mapped index cannot be.
    index = faiss.read_index(str(path))
    if index.ntotal != n:
        raise IndexMismatchError(f"{path} holds {index.ntotal} vectors, its index.json says {n}")
    merged.merge_from(index, merged.ntotal)  # type: ignore[attr-defined]


def _ids(folders: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    offset = 0
    for folder in folders:
        with pq.ParquetFile(folder / "ids.parquet") as file:
            for batch in file.iter_batches(IDS_GROUP_ROWS):
                yield batch.set_column(0, "row", pc.add(batch["row"], offset))
            offset += file.metadata.num_rows
