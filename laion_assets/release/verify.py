"""Verify a release: it is complete and consistent, and holds nothing that a list names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.files import sha256_file
from laion_assets.knn.files import map_index
from laion_assets.knn.subset import MODALITIES, Modality
from laion_assets.release.files import index_name, metadata_name, vectors_name
from laion_assets.release.manifest import CROISSANT, MANIFEST, README, SUMS, read_json
from laion_assets.release.plan import listed_rows
from laion_assets.removals.active import Lists
from laion_assets.schemas import sample_id_of, uid_of
from laion_assets.tables import read_parquet
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

_BLOCK: Final = 65_536
_NORM_TOLERANCE: Final = 5e-3
_COSINE_TOLERANCE: Final = 5e-3
"""Vectors are rounded to float16; the similarity was computed before or after that."""


_QUERIES: Final = 64
_SAME: Final = 0.99
"""Cosine from which two vectors count as the same: codes round, and images repeat."""

Problems = Iterator[str]


def verify(release: Path, lists: Lists | None = None) -> list[str]:
    """List the problems of a release; empty if it is as its manifest says.

    The checks, in this order:

    - each file's size and SHA-256; there are a release's files and no others;
    - what Croissant says of the files;
    - columns and rows; each SAMPLE_ID is that of its URL and text, and none occurs twice;
    - vectors are finite, of unit length, and those of their rows (their cosine is the row's
      similarity);
    - nothing in ``lists`` is in the release;
    - the indices' ids are the rows and lead to their vectors.

    A file that cannot be read is a problem, too. Raises ``FileNotFoundError`` if there is no
    manifest, ``ValueError`` if it is not one.
    """
    manifest = read_json(release / MANIFEST)
    lacking = {"files", "samples", "dimension", "indices"} - set(manifest)
    if lacking:
        raise ValueError(f"{MANIFEST} is not a release's: it lacks {', '.join(sorted(lacking))}")
    problems = list(_files(release, manifest))
    if problems:  # files other than the published ones are not opened
        return problems
    found = [
        *_readable(CROISSANT, _croissant(release, manifest)),
        *_rows(release, manifest, lists or Lists()),
    ]
    if manifest["indices"] is not None and not found:  # they are compared with the vectors
        for modality in MODALITIES:
            found += _readable(index_name(modality), _index(release, manifest, modality))
    return found


def _readable(name: str, problems: Problems) -> Problems:
    try:
        yield from problems
    except (OSError, ValueError, RuntimeError, LookupError, TypeError) as error:
        yield f"{name} cannot be read: {type(error).__name__}: {error}"


def _files(release: Path, manifest: Mapping[str, Any]) -> Problems:
    listed = {item["name"]: item for item in manifest["files"]}
    sums = (release / SUMS).read_text(encoding="utf-8") if (release / SUMS).exists() else ""
    if set(re.findall(r"^([0-9a-f]{64})  (.+)$", sums, re.MULTILINE)) != {
        (item["sha256"], name) for name, item in listed.items()
    }:
        yield f"{SUMS} differs from {MANIFEST}"
    belonging = _belonging(listed, indexed=manifest["indices"] is not None)
    for name in sorted(belonging - set(listed)):
        yield f"{MANIFEST} lists no {name}"
    for name in sorted(set(listed) - belonging):
        yield f"{name} does not belong in a release"
    present = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}
    for name in sorted(present - set(listed) - {MANIFEST, SUMS}):
        yield f"{name} is not in {MANIFEST}"
    progress = Progress("files verified", "files", len(listed), logger)
    for name, item in listed.items():
        path = release / name
        if name not in present:
            yield f"{name} is missing"
        elif path.stat().st_size != item["bytes"] or sha256_file(path) != item["sha256"]:
            yield f"{name} is not the file that was published"
        progress.advance()


def _metadata_files(names: Iterable[str]) -> int:
    return sum(name.startswith("metadata/") for name in names)


def _belonging(names: Iterable[str], *, indexed: bool) -> set[str]:
    """Names of all files of a release with as many metadata files as ``names`` has."""
    numbers = range(max(1, _metadata_files(names)))
    return {
        README,
        CROISSANT,
        *(metadata_name(number) for number in numbers),
        *(vectors_name(modality, number) for modality in MODALITIES for number in numbers),
        *(index_name(modality) for modality in MODALITIES if indexed),
    }


def _croissant(release: Path, manifest: Mapping[str, Any]) -> Problems:
    described = {
        item["@id"]: item["sha256"]
        for item in read_json(release / CROISSANT)["distribution"]
        if "sha256" in item
    }
    listed = {item["name"]: item["sha256"] for item in manifest["files"]}
    for name in sorted(set(listed) - {README, CROISSANT}):
        if described.get(name) != listed[name]:
            yield f"{CROISSANT} does not have the SHA-256 of {name}"
    for name in sorted(set(described) - set(listed)):
        yield f"{CROISSANT} names {name}, which is not in {MANIFEST}"


def _rows(release: Path, manifest: Mapping[str, Any], lists: Lists) -> Problems:
    rows = {item["name"]: item.get("rows") for item in manifest["files"]}
    ids: list[NDArray[np.int64]] = []
    scores = [f"{schemas.SCORE_PREFIX}{name}" for name in sorted(manifest.get("heads", ()))]
    columns = schemas.with_scores(schemas.SUBSET, scores)
    progress = Progress("rows verified", "files", _metadata_files(rows), logger)
    for number in range(_metadata_files(rows)):
        name = metadata_name(number)
        yield from _readable(name, _metadata(release, name, rows[name], columns, lists, ids))
        if len(ids) == number + 1:
            vectors = _vectors(release, number, manifest["dimension"])
            yield from _readable(f"the vectors of {name}", vectors)
        else:
            ids.append(np.empty(0, np.int64))
        progress.advance()
    every = np.concatenate([np.empty(0, np.int64), *ids])
    if len(every) != manifest["samples"]:
        yield f"the release has {len(every):,} samples, not {manifest['samples']:,}"
    if len(np.unique(every)) != len(every):
        yield f"{len(every) - len(np.unique(every)):,} SAMPLE_IDs occur twice"


def _metadata(
    release: Path,
    name: str,
    rows: int,
    columns: pa.Schema,
    lists: Lists,
    ids: list[NDArray[np.int64]],
) -> Problems:
    """Check a file of metadata; add its SAMPLE_IDs to ``ids`` if it has a subset's columns."""
    with pq.ParquetFile(release / name) as file:
        if not file.schema_arrow.remove_metadata().equals(columns):
            yield f"{name} has other columns than a subset"
            return
        table = file.read(columns=["SAMPLE_ID", "URL", "TEXT"])
    if table.num_rows != rows:
        yield f"{name} has {table.num_rows:,} rows, not {rows:,}"
    stated = table["SAMPLE_ID"].to_numpy()
    meant = [
        sample_id_of(uid_of(url, text))
        for batch in table.to_batches(max_chunksize=_BLOCK)
        for url, text in zip(batch["URL"].to_pylist(), batch["TEXT"].to_pylist(), strict=True)
    ]
    other = int((stated != np.array(meant, np.int64)).sum())
    if other:
        yield f"{name}: {other:,} SAMPLE_IDs are not those of their URL and text"
    ids.append(stated)
    _, counted = listed_rows(release / name, lists)
    for reason, n in counted.items():
        if n:
            yield f"{name} holds {n:,} samples that are {reason} by the active lists"


def _vectors(release: Path, number: int, width: int) -> Problems:
    rows = read_parquet(release / metadata_name(number), ["similarity"])
    similarity = rows["similarity"].to_numpy()
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
            # NaN compares false with everything: test for what is right.
            if not off <= _NORM_TOLERANCE:
                yield f"{vectors_name(modality, number)}: vectors are off unit length by {off}"
        cosine = np.einsum("ij,ij->i", image, text)
        off = np.abs(cosine - similarity[start : start + _BLOCK]).max()
        if not off <= _COSINE_TOLERANCE:
            yield f"{metadata_name(number)}: similarities are off their vectors' cosine by {off}"


def _index(release: Path, manifest: Mapping[str, Any], modality: Modality) -> Problems:
    name = index_name(modality)
    index = map_index(release / name)
    if (index.ntotal, index.d) != (manifest["samples"], manifest["dimension"]):
        yield f"{name} holds {index.ntotal:,} vectors of width {index.d}"
        return
    if not np.array_equal(np.sort(_ids(index)), np.arange(index.ntotal)):
        yield f"{name}: its ids are not the rows of the release"
        return
    number = _metadata_files(item["name"] for item in manifest["files"])
    arrays = [
        np.load(release / vectors_name(modality, n), mmap_mode="r", allow_pickle=False)
        for n in range(number)
    ]
    starts = np.cumsum([0, *(len(array) for array in arrays)])

    def vectors(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        which = np.searchsorted(starts, rows, side="right") - 1
        found = [arrays[n][row - starts[n]] for n, row in zip(which, rows, strict=True)]
        return np.array(found, np.float32)

    asked = np.unique(np.linspace(0, index.ntotal - 1, _QUERIES).astype(np.int64))
    queries = vectors(asked)
    _, found = index.search(queries, min(10, index.ntotal))
    hits = 0
    for query, rows in zip(queries, found, strict=True):
        near = vectors(rows[rows >= 0]) @ query if (rows >= 0).any() else np.zeros(1)
        hits += int(near.max() >= _SAME)
    if hits < len(asked) / 2:  # codes are not exact
        yield f"{name} finds {hits} of {len(asked)} vectors by themselves"


def _ids(index: Any) -> NDArray[np.int64]:
    import faiss

    if hasattr(index, "id_map"):
        return np.asarray(faiss.vector_to_array(index.id_map))
    ivf = faiss.extract_index_ivf(index)
    lists = ivf.invlists
    parts = []
    for cell in range(ivf.nlist):
        size = lists.list_size(cell)
        if size:
            parts.append(faiss.rev_swig_ptr(lists.get_ids(cell), size).copy())
    return np.concatenate([np.empty(0, np.int64), *parts])
