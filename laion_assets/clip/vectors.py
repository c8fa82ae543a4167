"""Vectors beside the rows of a folder's parts: where they lie, and how they are written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.files import FileWriter
from laion_assets.tables import ROWS_PER_PART, PartsWriter, VectorsWriter


def image_path(folder: Path, number: int) -> Path:
    """Place of the image vectors of the folder's part ``number``."""
    return folder / "_img_emb" / f"img_emb_{number:05d}.npy"


def text_path(folder: Path, number: int) -> Path:
    """Place of the text vectors of the folder's part ``number``."""
    return folder / "_text_emb" / f"text_emb_{number:05d}.npy"


Place = Callable[[Path, int], Path]
"""A folder and the number of a part -> where the part's vectors of one kind are."""

PLACES: Final[Sequence[Place]] = (image_path, text_path)
"""The places of image vectors and of text vectors."""


def has_texts(folder: Path) -> bool:
    """Whether a folder's parts have text vectors, and not only images without captions."""
    images, texts = (place(folder, 0).parent for place in PLACES)
    return texts.exists() or not images.exists()


def texts_among(names: Iterable[str]) -> bool:
    """As :func:`has_texts`, by the names of a folder's files, whether they are here or not."""
    folders = {name.partition("/")[0] for name in names}
    images, texts = (place(Path(), 0).parent.name for place in PLACES)
    return texts in folders or images not in folders


def places_in(folder: Path) -> Sequence[Place]:
    """Those of :data:`PLACES` that a folder's vectors are at."""
    return PLACES if has_texts(folder) else PLACES[:1]


def open_vectors(path: Path, rows: int) -> NDArray[Any]:
    """Memory-mapped array (rows, dim). Raises ``ValueError`` for another number of rows."""
    vectors: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors.ndim != 2 or len(vectors) != rows:
        raise ValueError(f"{path}: the shape {vectors.shape} does not fit {rows} rows")
    return vectors


class SamplesWriter(FileWriter):
    """Writes rows into a folder's parts, and the vectors of each part beside it.

    As :class:`PartsWriter` does: parts are full but for the last, the first always exists, and
    those in the folder from number ``first`` on are replaced. ``dim``: width of the vectors.
    ``places``: those of the vectors, which are PLACES or, without captions, the first of them.
    ``options``: of :class:`PartsWriter`.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        dim: int,
        *,
        first: int = 0,
        places: Sequence[Place] = PLACES,
        **options: Any,
    ) -> None:
        super().__init__()
        self._folder, self._dim, self._number, self._places = folder, dim, first, places
        self._stack.push(self._delete_rest)
        self._rows = self._stack.enter_context(
            PartsWriter(folder, schema, rows=ROWS_PER_PART, first=first, **options)
        )
        self._part = self._stack.enter_context(ExitStack())
        self._writers: list[VectorsWriter] = []
        self._room = 0

    @property
    def parts(self) -> list[Path]:
        return self._rows.parts

    def _finish(self) -> None:
        if not self._writers:
            self._open()

    def _delete_rest(self, kind: type[BaseException] | None, *_: object) -> None:
        """Delete an earlier call's vectors of further parts, and its texts' where there are none
        now: last, and only if all went well."""
        for place in PLACES[len(self._places) :]:
            texts = place(self._folder, 0).parent
            if kind is None and texts.exists():
                shutil.rmtree(texts)
        number = self._number
        while kind is None and any(place(self._folder, number).exists() for place in PLACES):
            for place in PLACES:
                place(self._folder, number).unlink(missing_ok=True)
            number += 1

    def write(self, rows: pa.Table, *vectors: NDArray[Any]) -> None:
        """Add rows and their vectors, (m, ``dim``) for each of the places."""
        while len(rows):
            if not self._room:
                self._open()
            n = min(self._room, len(rows))
            for writer, some in zip(self._writers, vectors, strict=True):
                writer.write(some[:n])
            self._room -= n
            if not self._room:
                # The rows come last: with them the part is complete.
                self._part.close()
            self._rows.write(rows.slice(0, n))
            rows, vectors = rows.slice(n), tuple(some[n:] for some in vectors)

    def _open(self) -> None:
        self._writers = [
            self._part.enter_context(VectorsWriter(place(self._folder, self._number), self._dim))
            for place in self._places
        ]
        self._number, self._room = self._number + 1, ROWS_PER_PART
