"""Looking a release through: is it whole, does it hold together, is it free of what is listed?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.files import sha256_file
from laion_assets.knn.subset import MODALITIES
from laion_assets.progress import Log, Progress, silent
from laion_assets.release.files import index_name, metadata_name, vectors_name
from laion_assets.release.manifest import MANIFEST, SUMS, read_json
from laion_assets.release.plan import listed_rows
from laion_assets.removals.in_force import Lists

_BLOCK: Final = 65_536
_NORM_TOLERANCE: Final = 5e-3
_COSINE_TOLERANCE: Final = 5e-3
"""The vectors are rounded to float16, the similarity was computed before or after that."""


def verify(release: Path, lists: Lists | None = None, *, log: Log = silent) -> list[str]:
    """What is wrong with a release; nothing if it is as its manifest says.

    Every file's size and SHA-256, that there is no other file, columns, rows, that no SAMPLE_ID
    comes twice, that vectors are finite, of unit length, and those of their rows (their cosine is
    the row's similarity), that the indices hold as many, and that nothing in ``lists`` is in it.
    Raises ``FileNotFoundError`` if there is no manifest.
    """
    manifest = read_json(release / MANIFEST)
    problems = list(_files(release, manifest, log))
    if problems:  # what is not the file that was published is not looked into
        return problems
    return [*_rows(release, manifest, lists or Lists(), log), *_indices(release, manifest)]


def _files(release: Path, manifest: Mapping[str, Any], log: Log) -> Iterator[str]:
    listed = {item["name"]: item for item in manifest["files"]}
    sums = (release / SUMS).read_text(encoding="utf-8") if (release / SUMS).exists() else ""
    if dict(re.findall(r"^([0-9a-f]{64})  (.+)$", sums, re.MULTILINE)) != {
        item["sha256"]: name for name, item in listed.items()
    }:
        yield f"{SUMS} is not what {MANIFEST} says"
    there = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}
    for name in sorted(there - set(listed) - {MANIFEST, SUMS}):
        yield f"{name} is not in {MANIFEST}"
    progress = Progress("files verified", "files", len(listed), log)
    for name, item in listed.items():
        path = release / name
        if name not in there:
            yield f"{name} is missing"
        elif path.stat().st_size != item["bytes"] or sha256_file(path) != item["sha256"]:
            yield f"{name} is not the file that was published"
        progress.advance()


def _rows(release: Path, manifest: Mapping[str, Any], lists: Lists, log: Log) -> Iterator[str]:
    rows = {item["name"]: item.get("rows") for item in manifest["files"]}
    names = [name for name in rows if name.startswith("metadata/")]
    ids: list[NDArray[np.int64]] = []
    progress = Progress("rows verified", "files", len(names), log)
    for number in range(len(names)):
        name = metadata_name(number)
        if name not in rows:
            yield f"{name} is missing"
            continue
        with pq.ParquetFile(release / name) as file:
            if not file.schema_arrow.remove_metadata().equals(schemas.SUBSET):
                yield f"{name} has other columns than a subset"
                continue
            table = file.read(columns=["SAMPLE_ID", "similarity"])
        if table.num_rows != rows[name]:
            yield f"{name} has {table.num_rows:,} rows, not {rows[name]:,}"
        ids.append(table["SAMPLE_ID"].to_numpy())
        yield from _vectors(release, number, table["similarity"].to_numpy(), manifest["dimension"])
        _, counted = listed_rows(release / name, lists)
        for reason, n in counted.items():
            if n:
                yield f"{name} holds {n:,} samples that are {reason} by the lists in force"
        progress.advance()
    every = np.concatenate([np.empty(0, np.int64), *ids])
    if len(every) != manifest["samples"]:
        yield f"{len(every):,} samples, not {manifest['samples']:,}"
    if len(np.unique(every)) != len(every):
        yield f"{len(every) - len(np.unique(every)):,} SAMPLE_IDs come twice"


def _vectors(
    release: Path, number: int, similarity: NDArray[np.float64], width: int
) -> Iterator[str]:
    arrays = {}
    for modality in MODALITIES:
        name = vectors_name(modality, number)
        array = np.load(release / name, mmap_mode="r", allow_pickle=False)
        if array.shape != (len(similarity), width) or array.dtype != np.float16:
            yield f"{name} is {array.dtype} {array.shape}, not float16 {(len(similarity), width)}"
            return
        arrays[modality] = array
    for start in range(0, len(similarity), _BLOCK):
        image, text = (arrays[m][start : start + _BLOCK].astype(np.float32) for m in MODALITIES)
        for modality, vectors in zip(MODALITIES, (image, text), strict=True):
            off = np.abs(np.linalg.norm(vectors, axis=1) - 1).max()
            # NaN compares false with everything: ask for what is right.
            if not off <= _NORM_TOLERANCE:
                yield f"{vectors_name(modality, number)}: vectors are off unit length by {off}"
        cosine = np.einsum("ij,ij->i", image, text)
        off = np.abs(cosine - similarity[start : start + _BLOCK]).max()
        if not off <= _COSINE_TOLERANCE:
            yield f"{metadata_name(number)}: similarities are off their vectors' cosine by {off}"


def _indices(release: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    if manifest["indices"] is None:
        return
    import faiss

    for modality in MODALITIES:
        index = faiss.read_index(str(release / index_name(modality)), faiss.IO_FLAG_MMAP_IFC)
        if (index.ntotal, index.d) != (manifest["samples"], manifest["dimension"]):
            yield f"{index_name(modality)} holds {index.ntotal:,} vectors of width {index.d}"
