"""The image and the text index of one segment's subset."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.knn.codec import Codec, train_codec, unequal
from laion_assets.knn.files import (
    IDS_GROUP_ROWS,
    IndexMismatchError,
    IndexRun,
    IndexSummary,
    SearchParameters,
    SegmentRows,
    link_codec,
    new_index,
    truth_name,
    vectors_name,
    versions,
    write_ids,
    write_index,
)
from laion_assets.knn.lists import write_lists
from laion_assets.knn.open_index import OpenIndex
from laion_assets.knn.options import FLAT_KINDS, IndexOptions
from laion_assets.knn.recall import Recall, tune
from laion_assets.knn.subset import MODALITIES, Modality, SubsetPart, blocks, subset_parts
from laion_assets.knn.truth import Truth
from laion_assets.schemas import INDEX_IDS
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

__all__ = ["IndexOptions", "build_index", "index_subset", "uses_codec"]


def uses_codec(options: IndexOptions, exists: bool) -> bool:
    """Whether segments are encoded; ``exists`` says whether there is a codec.

    Raises ``ValueError`` if the configured kind needs a codec and there is none.
    """
    if options.kind in FLAT_KINDS:
        return False
    if options.kind != "auto" and not exists:
        raise ValueError(
            f"an index of kind {options.kind} needs a codec: materialize `index_codec` first"
        )
    return exists


def index_subset(
    subset: Path,
    out: Path,
    options: IndexOptions,
    *,
    model_key: str,
    codec: Path | None = None,
) -> IndexSummary:
    """Index one subset alone, as :func:`build_index` does.

    ``codec`` is a codec's folder. Without one, a codec is trained on the subset if it has too many
    vectors to stay flat.
    """
    with ExitStack() as stack:
        if codec is None and options.kind not in FLAT_KINDS:
            n = sum(part.rows() for part in subset_parts(subset))
            if options.kind != "auto" or n > options.flat_below:
                codec = Path(stack.enter_context(TemporaryDirectory(dir=out)))
                alone = options.model_copy(update={"vectors": options.vectors or n})
                train_codec([subset], codec, alone, model_key=model_key)
        return build_index(
            subset,
            out,
            options,
            model_key=model_key,
            codec=Codec.open(codec) if codec else None,
            tuned=True,
        )


def build_index(
    subset: Path,
    out: Path,
    options: IndexOptions,
    *,
    model_key: str,
    codec: Codec | None = None,
    tuned: bool = False,
) -> IndexSummary:
    """Index a `filtered_subset` folder into ``out``; row numbers run through its parts in order.

    With a codec the index holds codes, without one the vectors themselves (`flat`). An empty subset
    gives valid empty indices. The same subset and codec give the same bytes. Memory: one of the two
    indices at a time.

    Raises :class:`~laion_assets.knn.subset.SubsetError` if vectors and rows differ in number.
    Raises :class:`IndexMismatchError` if vectors differ in width from one another or from the
    codec, or if the codec is of another model.

    Args:
        subset: the subset's folder.
        out: the index folder.
        options: those of the indices.
        model_key: the CLIP model that made the vectors.
        codec: what the vectors are encoded by; None keeps them as they are.
        tuned: choose search parameters for an index that is searched alone; False is for one that
            will be merged.
    """
    parts = subset_parts(subset)
    d = _width(parts, options)
    if codec and codec.summary.model != model_key:
        raise IndexMismatchError(
            f"the codec was trained for {codec.summary.model}, the vectors are of {model_key}"
        )
    if codec and parts and codec.summary.d != d:
        raise IndexMismatchError(
            f"the codec is for vectors of width {codec.summary.d}, the subset's have width {d}"
        )
    crawl, segment = _whose(parts)
    n = len(write_ids(out, _ids(parts)))
    kind = codec.summary.kind if codec else options.kind
    kind = kind if codec or kind in FLAT_KINDS else "flat"
    residual: dict[str, float] = {}
    for modality in MODALITIES:
        progress = Progress(f"{modality} index", "vectors", n, logger)
        if codec:
            residual[modality] = _encode(parts, modality, codec, out, progress)
        else:
            index = new_index(kind, d)
            for part in parts:
                for block in blocks(part.vectors(modality)):
                    rows = np.arange(index.ntotal, index.ntotal + len(block), dtype=np.int64)
                    index.add_with_ids(block, rows)
                    progress.advance(len(block))
            write_index(index, out / vectors_name(kind, modality))
    rows_of_parts = tuple((part.number, part.rows()) for part in parts)
    run = IndexRun(
        folder=".",
        level=0,
        kind=kind,
        codec=codec.id if codec else "",
        segments=(
            SegmentRows(
                crawl=crawl, segment=segment, version="", parts=rows_of_parts, residual=residual
            ),
        ),
    )
    if codec:
        link_codec(codec.folder, out, codec.id)
    summary = IndexSummary(kind=kind, n=n, d=d, model=model_key, runs=(run,), versions=versions())
    summary.write(out)
    if codec:
        summary = judge(OpenIndex(out, subset), summary, options, tuned=tuned)
    return summary


def judge(
    index: OpenIndex, summary: IndexSummary, options: IndexOptions, *, tuned: bool = True
) -> IndexSummary:
    """Choose search parameters, measure drift and imbalance, and write the summary with them.

    Unless ``tuned``, the parameters are generous ones that suit a piece of a larger index.
    """
    search: dict[str, dict[str, tuple[SearchParameters, ...]]] = {}
    recall: dict[str, dict[str, Recall]] = {}
    drift: dict[str, dict[str, float]] = {}
    imbalance: dict[str, dict[str, float]] = {}
    for name, codec in index.codecs.items():
        runs = [run for run in summary.runs if run.codec == name]
        segments = [s for run in runs for s in run.segments if s.rows and not s.dropped]
        search[name], recall[name], drift[name], imbalance[name] = {}, {}, {}, {}
        for modality in MODALITIES:
            if tuned:
                search[name][modality], recall[name][modality] = tune(
                    index, name, modality, options
                )
            else:
                rows = sum(run.n for run in runs)
                search[name][modality] = (_generous(codec.summary.cells, rows, options),)
            then = codec.summary
            if segments:
                rows = sum(segment.rows for segment in segments)
                far = sum(segment.rows * segment.residual[modality] for segment in segments) / rows
                drift[name][modality] = round(far / then.residual[modality], 4)
                sizes = index.cell_sizes(name, modality)
                imbalance[name][modality] = round(unequal(sizes) / then.imbalance[modality], 4)
    summary = summary.model_copy(
        update={"search": search, "recall": recall, "drift": drift, "imbalance": imbalance}
    )
    summary.write(index.folder)
    return summary


def _generous(cells: int, rows: int, options: IndexOptions) -> SearchParameters:
    """Parameters that look at some 50,000 vectors, which is fast for one segment."""
    nprobe = min(cells, 1_024, max(64, cells * 50_000 // max(1, rows)))
    return SearchParameters(nprobe=nprobe, rerank=800 if options.rerank else 0, k=100)


def _encode(
    parts: Sequence[SubsetPart], modality: Modality, codec: Codec, out: Path, progress: Progress
) -> float:
    """Write lists and truth; return one minus the mean cosine with the cells' centres."""
    encoder = codec.encoder(modality)
    row, near = 0, 0.0
    for part in parts:
        for block in blocks(part.vectors(modality)):
            near += float(encoder.add(block, row).sum(dtype=np.float64))
            row += len(block)
            progress.advance(len(block))
    write_lists(encoder.ivf.invlists, out / vectors_name(codec.summary.kind, modality))
    # One after another: each mapped array takes an open file.
    arrays = (part.vectors(modality) for part in parts)
    Truth.of(codec.queries(modality), arrays).write(out / truth_name(modality))
    return round(1 - near / row, 6) if row else 0.0


def _width(parts: Sequence[SubsetPart], options: IndexOptions) -> int:
    widths: dict[int, tuple[int, Modality]] = {}
    for part in parts:
        for modality in MODALITIES:
            widths.setdefault(part.vectors(modality).shape[1], (part.number, modality))
    if len(widths) > 1:
        found = ", ".join(f"{d} (part {n}, {kind})" for d, (n, kind) in sorted(widths.items()))
        raise IndexMismatchError(f"{parts[0].folder}: vectors of different widths: {found}")
    return next(iter(widths), options.dimension)


def _whose(parts: Sequence[SubsetPart]) -> tuple[str, str]:
    """Crawl and segment of the subset; empty if it has no rows."""
    for part in parts:
        with pq.ParquetFile(part.parquet) as file:
            for batch in file.iter_batches(1, columns=["crawl", "segment"]):
                row = batch.to_pylist()[0]
                return row["crawl"], row["segment"]
    return "", ""


def _ids(parts: Sequence[SubsetPart]) -> Iterator[pa.RecordBatch]:
    """Batches of the schema :data:`~laion_assets.knn.files.IDS`."""
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
                    schema=INDEX_IDS,
                )
                row += n
                part_row += n
