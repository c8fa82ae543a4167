"""The signatures of a segment's images, read from its shards and embeddings.

What is kept of an image whose stored bytes have not changed is taken over from the earlier
partition. Memory: 588 bytes an image, and its row.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.clip.earlier import DIGESTS, digest_of, read_digests
from laion_assets.clip.vectors import image_path, open_vectors
from laion_assets.download.shard_files import tar_path
from laion_assets.download.tars import ImageBytes
from laion_assets.files import ReadAt
from laion_assets.layout import EMBEDDINGS, PARTITIONS
from laion_assets.near_duplicates.signature import SIGNATURE, Signatures, look, sketches
from laion_assets.tables import part_number, read_parquet, rows_in, write_array
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

SIGNATURES: Final = "_signatures.npy"
"""File beside the parts: (n,) :data:`SIGNATURE`, row by row through all parts."""

_COLUMNS: Final = ("SAMPLE_ID", "width", "height", "sha256", "shard", "key")
_AT_ONCE: Final = 512
_HEX: Final = 64
"""Digits of a SHA-256."""


class Earlier(NamedTuple):
    """A partition of near-duplicates that the same revision of the code has made."""

    folder: Path
    same_rules: bool
    """Whether its options were the same, so that images stay in their clusters."""


def rows_of(embeddings: Path) -> pa.Table:
    """The rows of a folder of embeddings, with what near-duplicates are found by."""
    parts = PARTITIONS[EMBEDDINGS].rows.paths(embeddings)
    return pa.concat_tables([read_parquet(part, _COLUMNS) for part in parts])


def signatures_of(
    rows: pa.Table, shards: Path, embeddings: Path, model: str, earlier: Earlier | None = None
) -> Signatures:
    """The signatures of a segment's embedded images, (n,), with the clusters that they were in.

    ``rows``: of :func:`rows_of`. ``shards``: those that the embeddings were made of. ``model``: the
    version of the embeddings' model. ``earlier``: what may be taken over.
    """
    found = np.zeros(len(rows), SIGNATURE)
    found["model"] = int.from_bytes(hashlib.blake2b(model.encode(), digest_size=4).digest())
    found["image"] = read_digests(embeddings / DIGESTS, len(rows))
    at = 0
    for part in PARTITIONS[EMBEDDINGS].rows.paths(embeddings):
        vectors = open_vectors(image_path(embeddings, part_number(part)), rows_in(part))
        for start in range(0, len(vectors), _AT_ONCE):
            some = vectors[start : start + _AT_ONCE]
            found["sketch"][at : at + len(some)] = sketches(some)
            at += len(some)
    new = _take_over(found, earlier)
    progress = Progress("hashes", "images", len(rows), logger, resumed=len(rows) - len(new))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for numbers, encoded in _read(rows, shards, new):
            columns = (rows[name].take(pa.array(numbers)) for name in ("width", "height"))
            sizes = ([size or 0 for size in column.to_pylist()] for column in columns)
            for row, image, looked in zip(
                numbers, encoded, pool.map(look, encoded, *sizes), strict=True
            ):
                found["looks"][row] = looked
                found["image"][row] = np.frombuffer(digest_of(image), np.uint8)
            progress.advance(len(numbers))
    found["sha256"] = _hashes(rows["sha256"].to_pylist(), found["image"])
    return found


def _hashes(sha256: Sequence[str | None], images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 16): the beginning of the originals' hashes, or of the stored images' without them."""
    heads = [
        bytes.fromhex(text[:32]) if text and len(text) == _HEX else image.tobytes()
        for text, image in zip(sha256, images, strict=True)
    ]
    return np.frombuffer(b"".join(heads), np.uint8).reshape(-1, 16)


def _take_over(found: Signatures, earlier: Earlier | None) -> NDArray[np.int64]:
    """Copy what an earlier partition has of the same stored images; return the rows without."""
    path = earlier.folder / SIGNATURES if earlier else None
    if earlier is None or path is None or not path.exists():
        return np.arange(len(found))
    before = np.load(path, mmap_mode="r", allow_pickle=False)
    known = np.ascontiguousarray(before["image"]).view("V16").ravel()
    place = {digest.tobytes(): row for row, digest in enumerate(known)}
    rows = np.array([place.get(digest.tobytes(), -1) for digest in found["image"]], np.int64)
    same = np.flatnonzero((rows >= 0) & found["image"].any(axis=1))
    found["looks"][same] = before["looks"][rows[same]]
    if earlier.same_rules:
        found["cluster"][same] = before["cluster"][rows[same]]
    return np.setdiff1d(np.arange(len(found)), same)


def _read(
    rows: pa.Table, shards: Path, wanted: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
    """Numbers of rows and the stored bytes of their images, some at a time."""
    of_shard, keys = rows["shard"].to_numpy(), rows["key"].to_pylist()
    for shard in np.unique(of_shard[wanted]):
        of_this = wanted[of_shard[wanted] == shard]
        with ImageBytes(tar_path(shards, int(shard))) as images:
            for at in range(0, len(of_this), _AT_ONCE):
                numbers = of_this[at : at + _AT_ONCE]
                yield numbers, [images.read(keys[row]) for row in numbers]


def pixels_of(rows: pa.Table) -> NDArray[np.float64]:
    """Pixels of each row's original, (n,), by its ``width`` and ``height``; 0 if one is missing."""
    width, height = (rows[side].to_numpy().astype(np.float64) for side in ("width", "height"))
    pixels: NDArray[np.float64] = np.nan_to_num(width * height)
    return pixels


def write_signatures(folder: Path, signatures: Signatures) -> None:
    write_array(folder / SIGNATURES, signatures)


def read_signatures(file: ReadAt, rows: NDArray[np.int64]) -> Signatures:
    """Some rows of a file of signatures, (m,); ``rows`` sorted. Raises ``ValueError``."""
    head = file.read_at(0, 128)
    length = 10 + int.from_bytes(head[8:10], "little")
    if not head.startswith(b"\x93NUMPY\x01") or (file.size - length) % SIGNATURE.itemsize:
        raise ValueError(f"{file.name} is no file of signatures")
    found = np.zeros(len(rows), SIGNATURE)
    near = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) > 1) + 1)
    for places in near if len(rows) else ():
        begin = length + int(rows[places[0]]) * SIGNATURE.itemsize
        content = file.read_at(begin, len(places) * SIGNATURE.itemsize)
        found[places] = np.frombuffer(content, SIGNATURE)
    return found


def all_signatures(folder: Path) -> Any:
    """(n,) :data:`SIGNATURE`: a partition's, memory-mapped."""
    return np.load(folder / SIGNATURES, mmap_mode="r", allow_pickle=False)
