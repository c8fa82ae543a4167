"""Data files of a release: metadata, embeddings and indices, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from laion_assets.files import atomic_path
from laion_assets.knn.codec import Codec, ef_search
from laion_assets.knn.files import IndexSummary, index_path, new_index, write_index
from laion_assets.knn.options import FLAT_KINDS
from laion_assets.knn.subset import MODALITIES, Modality, blocks
from laion_assets.lake import Lake
from laion_assets.layout import INDEX_CODEC, SEARCH_INDEX
from laion_assets.release.plan import Piece, Plan, Rows
from laion_assets.tables import ROW_GROUP, TableWriter, batches

VECTORS: Final = {"image": "img_emb", "text": "text_emb"}
"""Modality -> the folder that clip-retrieval, autofaiss and embedding-reader read."""


def metadata_name(number: int) -> str:
    return f"metadata/metadata_{number:05d}.parquet"


def vectors_name(modality: Modality, number: int) -> str:
    folder = VECTORS[modality]
    return f"{folder}/{folder}_{number:05d}.npy"


def index_name(modality: Modality) -> str:
    return f"indices/{modality}.index"


def write_metadata(plan: Plan, first: int, stop: int, out: Path) -> None:
    write_rows(plan.slices(first, stop), out, plan.schema)


def write_rows(slices: Iterable[tuple[Piece, Rows]], out: Path, schema: pa.Schema) -> None:
    """Write the rows of parts of the subset, by their sorted numbers."""
    with TableWriter(out, schema) as writer:
        waiting: list[pa.Table] = []
        for piece, rows in slices:
            start = 0
            for batch in batches(piece.part.parquet, schema.names, ROW_GROUP):
                low, high = np.searchsorted(rows, [start, start + len(batch)])
                taken = batch.take(pa.array(rows[low:high] - start))
                waiting.append(pa.Table.from_batches([taken]).cast(schema))
                start += len(batch)
                if sum(map(len, waiting)) >= ROW_GROUP:
                    writer.write(pa.concat_tables(waiting))
                    waiting = []
        writer.write(pa.concat_tables([schema.empty_table(), *waiting]))


def write_vectors(plan: Plan, modality: Modality, first: int, stop: int, out: Path) -> None:
    with atomic_path(out) as beside:
        array = np.lib.format.open_memmap(
            beside, mode="w+", dtype=np.float16, shape=(stop - first, plan.dimension)
        )
        start = 0
        for piece, rows in plan.slices(first, stop):
            vectors = piece.part.vectors(modality)
            for low in range(0, len(rows), ROW_GROUP):
                some = rows[low : low + ROW_GROUP]
                array[start : start + len(some)] = vectors[some]
                start += len(some)
        array.flush()


def index_codec(lake: Lake, kind: str) -> Codec | None:
    """The codec that the lake's indices share; None if there is none, or the kind needs none."""
    exists = kind not in FLAT_KINDS and lake.has(INDEX_CODEC)
    return Codec.open(lake.published(INDEX_CODEC)) if exists else None


def write_faiss(
    folder: Path, files: int, modality: Modality, codec: Codec | None, kind: str, nprobe: int | None
) -> None:
    """Write a faiss index whose ids are the release's rows, counted through its files in order.

    With a codec it holds codes and searches ``nprobe`` cells by default; without one it holds the
    vectors themselves. Memory: the index.
    """
    index: Any = None
    row = 0
    for block in _blocks(folder, files, modality):
        if index is None:
            plain = kind if kind in FLAT_KINDS else "flat"
            index = (
                _empty(codec, modality, nprobe or 1) if codec else new_index(plain, block.shape[1])
            )
        index.add_with_ids(block, np.arange(row, row + len(block), dtype=np.int64))
        row += len(block)
    write_index(index, folder / index_name(modality))


def _empty(codec: Codec, modality: Modality, nprobe: int) -> Any:
    import faiss

    index = faiss.read_index(str(index_path(codec.folder, modality)))
    ivf: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    # The file keeps both settings: whoever loads it searches as well as we do.
    ivf.nprobe = nprobe
    centres = faiss.downcast_index(ivf.quantizer)
    if isinstance(centres, faiss.IndexHNSW):
        centres.hnsw.efSearch = ef_search(nprobe)
    return index


def _blocks(folder: Path, files: int, modality: Modality) -> Iterator[Any]:
    for number in range(files):
        path = folder / vectors_name(modality, number)
        yield from blocks(np.load(path, mmap_mode="r", allow_pickle=False))


def cells_to_look_into(lake: Lake, codec: Codec | None) -> dict[str, int | None]:
    """Number of cells to search, by modality, that the search index chose for 10 results."""
    if codec is None or not lake.has(SEARCH_INDEX):
        return dict.fromkeys(MODALITIES)
    summary = IndexSummary.read(lake.published(SEARCH_INDEX))
    if codec.id not in summary.search:
        return dict.fromkeys(MODALITIES)
    known = summary.search[codec.id]
    return {
        m: summary.parameters(codec.id, m, 10).nprobe if m in known else None for m in MODALITIES
    }
