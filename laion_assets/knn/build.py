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
    IndexSummary,
    Run,
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
from laion_assets.knn.options import FLAT_KINDS, IndexOptions
from laion_assets.knn.recall import Recall, tune
from laion_assets.knn.runs import OpenIndex
from laion_assets.knn.subset import MODALITIES, Modality, SubsetPart, blocks, subset_parts
from laion_assets.knn.truth import Truth
from laion_assets.progress import Progress
from laion_assets.schemas import INDEX_IDS

logger = logging.getLogger(__name__)

__all__ = ["IndexOptions", "build_index", "index_subset", "uses_codec"]


def uses_codec(options: IndexOptions, there: bool) -> bool:
    """Whether segments are encoded; ``there`` says whether a codec has been made.

    Raises ``ValueError`` if the kind asked for needs one that has not.
    """
    if options.kind in FLAT_KINDS:
        return False
    if options.kind != "auto" and not there:
        raise ValueError(f"an index of kind {options.kind} needs a codec: make `index_codec` first")
    return there


def index_subset(
    subset: Path,
    out: Path,
    options: IndexOptions,
    *,
    model_key: str,
    codec: Path | None = None,
) -> IndexSummary:
    """:func:`build_index` for one subset alone: where no codec's folder is given and the vectors
    are too many to stay flat, one is trained on them."""
    with ExitStack() as stack:
        if codec is None and options.kind not in FLAT_KINDS:
            there = sum(part.rows() for part in subset_parts(subset))
            if options.kind != "auto" or there > options.flat_below:
                codec = Path(stack.enter_context(TemporaryDirectory(dir=out)))
                alone = options.model_copy(update={"vectors": options.vectors or there})
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

    With a codec its codes are kept, without one the vectors themselves (`flat`). Search parameters
    are ``tuned`` if it is to be searched alone and not to be merged. An empty subset
    gives valid empty indices. The same subset and codec give the same bytes. Memory: one of the two
    indices at a time. Raises :class:`~laion_assets.knn.subset.SubsetError` if vectors and rows
    differ in number, :class:`IndexMismatchError` if the vectors differ in width from one another
    or from the codec's, or the codec is of another model.
    """
    parts = subset_parts(subset)
    d = _width(parts, options)
    if codec and codec.summary.model != model_key:
        raise IndexMismatchError(f"the codec is of {codec.summary.model}, not of {model_key}")
    if codec and parts and codec.summary.d != d:
        raise IndexMismatchError(f"the codec is for width {codec.summary.d}, not {d}")
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
    run = Run(
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
        summary = judge(OpenIndex(out, lambda *_: subset), summary, options, tuned=tuned)
    return summary


def judge(
    index: OpenIndex, summary: IndexSummary, options: IndexOptions, *, tuned: bool = True
) -> IndexSummary:
    """Choose search parameters, measure drift and imbalance, and write the summary with them.

    Not ``tuned``: parameters that a piece of a larger index is well searched with.
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
    """Some 50,000 vectors looked at, which for one segment is quick."""
    nprobe = min(cells, 1_024, max(64, cells * 50_000 // max(1, rows)))
    return SearchParameters(nprobe=nprobe, rerank=800 if options.rerank else 0, k=100)


def _encode(
    parts: Sequence[SubsetPart], modality: Modality, codec: Codec, out: Path, progress: Progress
) -> float:
    """Write lists and truth; returns one minus the mean cosine with the cells' centres."""
    encoder = codec.encoder(modality)
    row, near = 0, 0.0
    for part in parts:
        for block in blocks(part.vectors(modality)):
            near += float(encoder.add(block, row).sum(dtype=np.float64))
            row += len(block)
            progress.advance(len(block))
    write_lists(encoder.ivf.invlists, out / vectors_name(codec.summary.kind, modality))
    # One after another: each that is mapped takes an open file.
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
    """The subset's crawl and segment; empty if it has no rows."""
    for part in parts:
        with pq.ParquetFile(part.parquet) as file:
            for batch in file.iter_batches(1, columns=["crawl", "segment"]):
                row = batch.to_pylist()[0]
                return row["crawl"], row["segment"]
    return "", ""


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
                    schema=INDEX_IDS,
                )
                row += n
                part_row += n
