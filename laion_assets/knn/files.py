"""An index folder: `image.index`, `text.index`, `ids.parquet`, and `index.json` written last."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets import __version__
from laion_assets.files import atomic_path, write_json
from laion_assets.knn.subset import Modality

METRIC: Final = "inner_product"
IDS_GROUP_ROWS: Final = 65_536
"""Small row groups: a hit's ids are read by row number, one group at a time."""

IDS: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("SAMPLE_ID", pa.int64()),
        ("crawl", pa.string()),
        ("segment", pa.string()),
        ("part", pa.int32()),
        ("part_row", pa.int64()),
    ]
)
"""`ids.parquet`: row number in the index -> sample, and its place in the segment's subset."""


class IndexMismatchError(ValueError):
    """Indices, ids and rows do not belong together; the message says which."""


@dataclass(frozen=True)
class IndexSummary:
    """What `index.json` says. ``n`` vectors of width ``d`` in each of the two indices."""

    kind: str
    n: int
    d: int
    model: str
    versions: Mapping[str, str]
    metric: str = METRIC

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, index_dir: Path) -> IndexSummary:
        return cls(**json.loads((index_dir / "index.json").read_text(encoding="utf-8")))

    def write(self, index_dir: Path) -> None:
        write_json(index_dir / "index.json", self.to_json())


def index_path(index_dir: Path, modality: Modality) -> Path:
    return index_dir / f"{modality}.index"


def versions() -> dict[str, str]:
    import faiss

    return {"faiss": faiss.__version__, "laion-assets": __version__}


def new_index(kind: str, d: int) -> Any:
    """An empty faiss ``IndexIDMap2`` over inner product; ids are row numbers."""
    import faiss

    if kind == "flat":
        return faiss.IndexIDMap2(faiss.IndexFlatIP(d))
    if kind == "flat_fp16":
        half = faiss.ScalarQuantizer.QT_fp16
        return faiss.IndexIDMap2(faiss.IndexScalarQuantizer(d, half, faiss.METRIC_INNER_PRODUCT))
    raise ValueError(f"unknown kind of index {kind!r}")


def write_index(index: Any, path: Path) -> None:
    import faiss

    with atomic_path(path) as beside:
        faiss.write_index(index, str(beside))


def open_index(index_dir: Path, modality: Modality) -> Any:
    """The faiss index with its vectors memory-mapped: for searching, not for adding."""
    import faiss

    return faiss.read_index(str(index_path(index_dir, modality)), faiss.IO_FLAG_MMAP_IFC)


def write_ids(index_dir: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Publish `ids.parquet`; returns its number of rows."""
    rows = 0
    with (
        atomic_path(index_dir / "ids.parquet") as beside,
        pq.ParquetWriter(beside, IDS, compression="zstd") as writer,
    ):
        for batch in batches:
            writer.write_batch(batch.cast(IDS), row_group_size=IDS_GROUP_ROWS)
            rows += batch.num_rows
    return rows
