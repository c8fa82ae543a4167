"""The image and the text index of one segment's subset."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pyarrow as pa

from laion_assets.clip.identity import ModelIdentity
from laion_assets.knn.codec import Codec, train_codec
from laion_assets.knn.files import (
    IndexMismatchError,
    IndexRun,
    IndexSummary,
    PartRows,
    SegmentRows,
    link_codec,
    new_index,
    truth_name,
    vectors_name,
    versions,
    write_ids,
    write_index,
)
from laion_assets.knn.judge import judge_alone
from laion_assets.knn.lists import write_lists
from laion_assets.knn.open_index import OpenIndex
from laion_assets.knn.options import FLAT_KINDS, IndexOptions
from laion_assets.knn.subset import (
    AFTER_A_CHANGE,
    MODALITIES,
    Modality,
    SubsetPart,
    blocks,
    modalities_of,
    published_digests,
    subset_parts,
)
from laion_assets.knn.truth import Truth
from laion_assets.schemas import INDEX_IDS
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

_DIGEST_BEGINNING: Final = 16

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
    model: ModelIdentity,
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
                train_codec([subset], codec, alone, model=model)
        return build_index(
            subset,
            out,
            options,
            model=model,
            codec=Codec.open(codec) if codec else None,
            tuned=True,
        )


def build_index(
    subset: Path,
    out: Path,
    options: IndexOptions,
    *,
    model: ModelIdentity,
    codec: Codec | None = None,
    tuned: bool = False,
) -> IndexSummary:
    """Index a `filtered_subset` folder into ``out``; row numbers run through its parts in order.

    With a codec the index holds codes, without one the vectors themselves (`flat`). So does the
    index of a subset with captions if the codec is for images alone. An empty subset gives valid
    empty indices, and images without captions give no text index. The same subset and codec give
    the same bytes. Memory: one of the two indices at a time.

    Raises :class:`~laion_assets.knn.subset.SubsetError` if vectors and rows differ in number.
    Raises :class:`IndexMismatchError` if vectors differ in width from one another or from the
    codec, or if the codec is of another model.

    Args:
        subset: the subset's folder.
        out: the index folder.
        options: those of the indices.
        model: the CLIP model that made the vectors.
        codec: what the vectors are encoded by; None keeps them as they are.
        tuned: choose search parameters for an index that is searched alone; False is for one that
            will be merged.
    """
    parts = subset_parts(subset)
    d = _width(parts, options)
    if codec and not codec.summary.is_same(model):
        raise IndexMismatchError(
            f"the codec was trained for {codec.summary.title}, the vectors are of {model.title}: "
            f"{AFTER_A_CHANGE}"
        )
    if codec and parts and codec.summary.d != d:
        raise IndexMismatchError(
            f"the codec is for vectors of width {codec.summary.d}, the subset's have width {d}"
        )
    codec, modalities = _encoding(parts, codec)
    crawl, segment = _whose(parts)
    n = len(write_ids(out, _ids(parts)))
    kind = codec.summary.kind if codec else options.kind
    kind = kind if codec or kind in FLAT_KINDS else "flat"
    residual: list[float] = []
    for modality in modalities:
        progress = Progress(f"{modality} index", "vectors", n, logger)
        if codec:
            residual.append(_encode(parts, modality, codec, out, progress))
        else:
            index = new_index(kind, d)
            for part in parts:
                for block in blocks(part.vectors(modality)):
                    rows = np.arange(index.ntotal, index.ntotal + len(block), dtype=np.int64)
                    index.add_with_ids(block, rows)
                    progress.advance(len(block))
            write_index(index, out / vectors_name(kind, modality))
    run = IndexRun(
        folder=".",
        level=0,
        kind=kind,
        codec=codec.id if codec else "",
        modalities=tuple(modalities),
        segments=(
            SegmentRows(crawl, segment, "", _described(subset, parts), residual=tuple(residual)),
        ),
    )
    if codec:
        link_codec(codec.folder, out, codec.id)
    summary = IndexSummary(
        **model.identity.model_dump(), kind=kind, n=n, d=d, runs=(run,), versions=versions()
    )
    summary.write(out)
    return judge_alone(OpenIndex(out, subset), options, tuned=tuned) if codec else summary


def _encoding(
    parts: Sequence[SubsetPart], codec: Codec | None
) -> tuple[Codec | None, Sequence[Modality]]:
    """What encodes the parts' vectors, and of what these are.

    A codec of images alone fits no texts. Whether a subset without rows has captions is unknown.
    """
    modalities = modalities_of(parts)
    if codec is None or {*modalities} <= {*codec.summary.modalities}:
        return codec, modalities
    if not any(part.rows() for part in parts):
        return codec, codec.summary.modalities
    logger.warning(
        "the codec was trained for images alone, and this subset has captions: its vectors are "
        "kept as they are. Once there are more captions, materialize index_codec"
    )
    return None, modalities


def _described(subset: Path, parts: Sequence[SubsetPart]) -> tuple[PartRows, ...]:
    """The subset's parts with their rows and, if it is published, their vectors' digests."""
    published = published_digests(subset)

    def digest(part: SubsetPart, modality: Modality) -> str:
        name = part.vectors_path(modality).relative_to(subset).as_posix()
        return published.get(name, "")[:_DIGEST_BEGINNING]

    return tuple(
        PartRows(part.number, part.rows(), *(digest(part, modality) for modality in MODALITIES))
        for part in parts
    )


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
        for modality in modalities_of(parts):
            widths.setdefault(part.vectors(modality).shape[1], (part.number, modality))
    if len(widths) > 1:
        found = ", ".join(f"{d} (part {n}, {kind})" for d, (n, kind) in sorted(widths.items()))
        raise IndexMismatchError(f"{parts[0].folder}: vectors of different widths: {found}")
    return next(iter(widths), options.dimension)


def _whose(parts: Sequence[SubsetPart]) -> tuple[str, str]:
    """Crawl and segment of the subset; empty if it has no rows, or is of no crawl."""
    for part in parts:
        if part.rows():
            first = part.places().slice(0, 1).to_pylist()[0]
            return first["crawl"], first["segment"]
    return "", ""


def _ids(parts: Sequence[SubsetPart]) -> Iterator[pa.Table]:
    """A table of the schema :data:`~laion_assets.schemas.INDEX_IDS` for each part."""
    row = 0
    for part in parts:
        of_part = part.places()
        n = of_part.num_rows
        columns = {
            "row": np.arange(row, row + n),
            "part": np.full(n, part.number, dtype=np.int32),
            "part_row": np.arange(n),
        }
        own = {name: of_part[name] for name in of_part.column_names}
        yield pa.table({**columns, **own}).select(INDEX_IDS.names)
        row += n
