"""Parts of a `filtered_subset` folder and their vectors, as the indices read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laion_assets.clip.identity import (
    ModelIdentity,
    SeveralModelsError,
    UnknownModelError,
    the_one,
)
from laion_assets.clip.vectors import has_texts, image_path, text_path
from laion_assets.files import Identity, identity
from laion_assets.filtering.subset import NOTE, embedded_by
from laion_assets.lake import MANIFEST, Manifest
from laion_assets.layout import FILTERED_SUBSET, PARTITIONS, SegmentKey
from laion_assets.tables import KEY_COLUMNS, key_in, part_path, read_parquet, rows_in

Modality = Literal["image", "text"]
MODALITIES: Final[Sequence[Modality]] = ("image", "text")
_PATH: Final = {"image": image_path, "text": text_path}
_READING_ATTEMPTS: Final = 3

Vectors = npt.NDArray[Any]
T = TypeVar("T")

SubsetOf = Callable[[SegmentKey], Path]
"""A segment -> the folder of its `filtered_subset`."""

Subsets = SubsetOf | Path
"""Where an index finds its subsets.

An index of one subset alone takes that folder instead: its samples may be of no known crawl, and
then no :class:`SegmentKey` names them.
"""


class SubsetError(ValueError):
    """A subset's rows and vectors do not belong together, or one of its files is damaged; the
    message says which."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise :class:`SubsetError` for what reading a damaged parquet file raises."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise SubsetError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class SubsetPart:
    """One ``part-NNNNN.parquet`` and the vectors of the same number."""

    folder: Path
    number: int

    @property
    def parquet(self) -> Path:
        return part_path(self.folder, self.number)

    def rows(self) -> int:
        return rows_in(self.parquet)

    def sample_ids(self) -> npt.NDArray[np.int64]:
        """SAMPLE_IDs of the rows, ``(rows,)``."""
        with reading(self.parquet):
            rows = read_parquet(self.parquet, ["SAMPLE_ID"])
        ids: npt.NDArray[np.int64] = rows["SAMPLE_ID"].to_numpy()
        return ids

    def places(self) -> pa.Table:
        """SAMPLE_ID, crawl and segment of the rows; the latter two are ``""`` in files of no crawl,
        which may lack these columns.

        Raises :class:`SubsetError` for a file without SAMPLE_IDs.
        """
        present = {*pq.read_schema(self.parquet).names}
        if "SAMPLE_ID" not in present:
            raise SubsetError(f"{self.parquet} has no column SAMPLE_ID")
        if key_in(self.parquet):
            present |= {*KEY_COLUMNS}
        table = read_parquet(self.parquet, [n for n in ("SAMPLE_ID", *KEY_COLUMNS) if n in present])
        columns = {"SAMPLE_ID": table["SAMPLE_ID"]}
        for name in KEY_COLUMNS:
            known = table[name] if name in present else pa.nulls(len(table))
            columns[name] = pc.fill_null(known.cast(pa.string()), "")
        return pa.table(columns)

    def vectors_path(self, modality: Modality) -> Path:
        return _PATH[modality](self.folder, self.number)

    def vectors(self, modality: Modality) -> Vectors:
        """Memory-mapped vectors of the rows, ``(rows, d)`` float16.

        Raises :class:`SubsetError` if there are not as many vectors as rows.
        """
        path = self.vectors_path(modality)
        if not path.exists():
            raise SubsetError(f"{self.parquet} has no {modality} vectors at {path}")
        vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors.ndim != 2 or len(vectors) != self.rows():
            raise SubsetError(
                f"{path} has the shape {vectors.shape}, but {self.parquet.name} has "
                f"{self.rows()} rows"
            )
        return vectors


def modalities_of(parts: Sequence[SubsetPart]) -> Sequence[Modality]:
    """What a subset's parts have vectors of: images alone if these have no captions."""
    captions = not parts or has_texts(parts[0].folder)
    return MODALITIES if captions else MODALITIES[:1]


def subset_folder(subsets: Subsets, crawl: str, segment: str) -> Path:
    """Folder of a segment's subset.

    Raises ``ValueError`` for a segment of no known crawl, unless ``subsets`` is one folder.
    """
    return subsets if isinstance(subsets, Path) else subsets(SegmentKey(crawl, segment))


def subset_parts(folder: Path) -> list[SubsetPart]:
    """The folder's parts by number. Raises ``FileNotFoundError`` if there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no subset at {folder}")
    return [
        SubsetPart(folder, int(path.stem.removeprefix("part-")))
        for path in PARTITIONS[FILTERED_SUBSET].rows.paths(folder)
    ]


def published_digests(folder: Path) -> Mapping[str, str]:
    """SHA-256 of the files of a published folder by name; empty for a folder that is none."""
    if not (folder / MANIFEST).exists():
        return {}
    return {item["name"]: item["sha256"] for item in Manifest.read(folder).files}


def heads_of(folder: Path) -> Mapping[str, str]:
    """Name -> digest of the heads that scored a subset's rows, as the folder itself says; empty if
    it does not say.

    Raises :class:`SubsetError` if what it says is damaged.
    """
    try:
        if (folder / MANIFEST).exists():
            found = Manifest.read(folder).metadata.get("heads")
        elif (folder / NOTE).exists():
            found = json.loads((folder / NOTE).read_text(encoding="utf-8")).get("heads")
        else:
            found = None
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SubsetError(f"{folder} does not say what scored it: {error}") from error
    return dict(found or {})


def model_of(subset: Path) -> ModelIdentity:
    """The model that made a folder's vectors, as the folder itself says: a subset, or what `embed`
    has written.

    Raises :class:`UnknownModelError` if it does not say.
    """
    if (subset / MANIFEST).exists():
        return ModelIdentity.recorded(Manifest.read(subset).metadata, subset).identity
    if (subset / NOTE).exists():
        noted = json.loads((subset / NOTE).read_text(encoding="utf-8"))
        return ModelIdentity.recorded(noted, subset).identity
    if embedder := embedded_by(subset):
        return embedder
    raise UnknownModelError(
        f"{subset} has no {NOTE}, which says what model made its vectors: filter it again"
    )


AFTER_A_CHANGE: Final = (
    "materialize embeddings, scored_pairs and filtered_subset of the segments that are not of the "
    "settings' model; when none is left, index_codec if there is one, then knn_index of all "
    "segments, then search_index; see docs/own-model.md"
)
"""What to do where things of several models meet."""


def model_of_all(subsets: Mapping[SegmentKey, Path]) -> ModelIdentity:
    """The one model of all subsets.

    Raises :class:`SubsetError` if there are none, and
    :class:`~laion_assets.clip.identity.SeveralModelsError`, which says what to do.
    """
    try:
        found = the_one(((key, model_of(folder)) for key, folder in subsets.items()), "subsets")
    except SeveralModelsError as error:
        raise SeveralModelsError(f"{error}: {AFTER_A_CHANGE}") from error
    if found is None:
        raise SubsetError("there are no subsets")
    return found


def _state(folder: Path) -> tuple[Identity, ...]:
    """What differs once a published folder, or a part of one that is not, was replaced."""
    try:
        return (identity(folder / MANIFEST),)
    except FileNotFoundError:
        return tuple(identity(part.parquet) for part in subset_parts(folder))


def read_whole(folder: Path, read: Callable[[], T]) -> T | None:
    """Call ``read`` until the subset is not replaced meanwhile; return its value.

    Rows and vectors are separate files, so a subset that is replaced between the two reads would
    mix two versions. Returns None if it does not exist, or is replaced again and again. Raises
    :class:`SubsetError` if its rows and vectors do not belong together.
    """
    for attempt in range(_READING_ATTEMPTS):
        try:
            before = _state(folder)
            value = read()
            if _state(folder) == before:
                return value
        except FileNotFoundError:
            continue
        except SubsetError:
            # Replaced between rows and vectors, or wrong as it is.
            if attempt == _READING_ATTEMPTS - 1:
                raise
    return None


def blocks(vectors: Vectors, rows: int = 65_536) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the vectors as contiguous float32, at most ``rows`` of them at a time."""
    for start in range(0, len(vectors), rows):
        yield np.ascontiguousarray(vectors[start : start + rows], dtype=np.float32)
