"""Take over, from an earlier version of a folder of embeddings, the vectors of unchanged samples.

A sample is unchanged if its text is the same and so are the bytes of its stored image, of which a
digest is kept beside the vectors. That the model is the same is for the caller to know.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.clip.vectors import PLACES, Place, open_vectors, places_in
from laion_assets.download.tars import ImageBytes
from laion_assets.tables import part_number, part_path, read_parquet, rows_in, write_array

DIGEST_BYTES: Final = 16
DIGESTS: Final = "_image_digests.npy"
"""File beside the parts: (n, :data:`DIGEST_BYTES`) uint8, row by row through all parts."""

Digests = NDArray[np.uint8]


def digest_of(image: bytes) -> bytes:
    """Digest of the bytes of a stored image."""
    return hashlib.blake2b(image, digest_size=DIGEST_BYTES).digest()


def digests_of(images: ImageBytes, keys: Sequence[str]) -> Digests:
    """(n, 16) uint8: digests of the images of a tar."""
    return as_digests([digest_of(images.read(key)) for key in keys])


def as_digests(digests: Sequence[bytes]) -> Digests:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def read_digests(path: Path, rows: int) -> Digests:
    """(rows, 16) uint8: the first ones of a file; zeros, which no image has, if it has fewer."""
    if path.exists():
        digests: Digests = np.load(path, allow_pickle=False)
        if len(digests) >= rows:
            return digests[:rows]
    return np.zeros((rows, DIGEST_BYTES), np.uint8)


def write_digests(path: Path, digests: Digests) -> None:
    write_array(path, digests)


class Earlier:
    """The samples of an earlier version, found by SAMPLE_ID, text and image.

    Those of a part of which a file is missing, as a damaged one is, are not among them.
    Memory: its SAMPLE_IDs, texts and digests.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.places = places_in(folder)
        self._parts = _whole_parts(folder, self.places)
        tables = [read_parquet(part.rows, ["SAMPLE_ID", "text"]) for part in self._parts]
        if self.places != PLACES and any(_has_caption(table) for table in tables):
            self._parts = tables = []  # the text vectors are all missing
        rows = pa.concat_tables(tables).combine_chunks() if tables else None
        ids = rows["SAMPLE_ID"].to_numpy() if rows else np.zeros(0, np.int64)
        self._texts = rows["text"] if rows else pa.chunked_array([], pa.string())
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]
        end = self._parts[-1].end if self._parts else 0
        digests = read_digests(folder / DIGESTS, end)
        self._digests = np.concatenate(
            [digests[:0], *(digests[part.begin : part.end] for part in self._parts)]
        )

    def find(self, rows: pa.Table, digests: Digests) -> NDArray[np.int64]:
        """(n,) int64: the number of each sample's row here, -1 where there is none.

        ``rows``: with the columns of ``schemas.EMBEDDED``. ``digests``: of their images.
        """
        ids = rows["SAMPLE_ID"].to_numpy()
        found = np.full(len(ids), -1, np.int64)
        if not len(self._ids):
            return found
        place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        at = self._order[place]
        same = (self._ids[place] == ids) & (self._digests[at] == digests).all(axis=1)
        here = np.flatnonzero(same)
        texts = self._texts.take(pa.array(at[here])).to_pylist()
        wanted = rows["text"].take(pa.array(here)).to_pylist()
        here = here[[one == other for one, other in zip(texts, wanted, strict=True)]]
        found[here] = at[here]
        return found

    def vectors(self, place: Place, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(n, dim) float16: the vectors of rows by their numbers; ``place`` says which vectors."""
        found: NDArray[Any] | None = None
        start = 0
        for part in self._parts:
            n = part.end - part.begin
            vectors = open_vectors(place(self._folder, part_number(part.rows)), n)
            if found is None:
                found = np.empty((len(rows), vectors.shape[1]), np.float16)
            inside = (rows >= start) & (rows < start + n)
            found[inside] = vectors[rows[inside] - start]
            start += n
        assert found is not None, "rows are of parts"
        return found


class _Part(NamedTuple):
    """A part's rows, and where they are among those of all parts: ``begin`` to before ``end``."""

    rows: Path
    begin: int
    end: int


def _has_caption(rows: pa.Table) -> bool:
    return bool(rows["text"].null_count < len(rows))


def _whole_parts(folder: Path, places: Sequence[Place]) -> list[_Part]:
    """The parts of which no file is missing. Ends with the first of which all are."""
    parts: list[_Part] = []
    begin = 0
    for number in itertools.count():
        rows, vectors = part_path(folder, number), [place(folder, number) for place in places]
        present = [path for path in vectors if path.exists()]
        if rows.exists():
            end = begin + rows_in(rows)
        elif present:
            end = begin + len(np.load(present[0], mmap_mode="r", allow_pickle=False))
        else:
            return parts
        if rows.exists() and present == vectors:
            parts.append(_Part(rows, begin, end))
        begin = end
    return parts
