"""A sample's row by its place in the subset: metadata and vectors, never a whole segment in memory.

A part of the subset (some 10,000 rows) is read once and kept while others are not asked for more;
its vectors stay memory-mapped. Arrow reads a parquet file by whole row groups, so a part is as
little as can be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from laion_assets.files import Identity, identity
from laion_assets.knn.runs import SubsetOf
from laion_assets.knn.search import Place
from laion_assets.knn.subset import MODALITIES, Modality, SubsetError, SubsetPart, part_path
from laion_assets.search.cache import ByteCache
from laion_assets.segments import CRAWL_NAME

COLUMNS: Final = (
    "SAMPLE_ID",
    "URL",
    "TEXT",
    "HEIGHT",
    "WIDTH",
    "LICENSE",
    "NSFW",
    "similarity",
    "LANGUAGE",
    "page_url",
    "sha256",
    "key",
    "crawl",
    "segment",
)
_UNSIGNED: Final = 2**64 - 1
_SHARD_DIGITS: Final = 5
_READING_ATTEMPTS: Final = 3
_REF: Final = re.compile(rf"({CRAWL_NAME.pattern})\.(\d{{2}})\.(\d{{9,12}})\.([0-9a-f]{{16}})")


@dataclass(frozen=True, slots=True)
class SampleRef:
    """A sample's name in URLs: where its image is stored, and its SAMPLE_ID.

    It stays right when the index is made anew: the id is compared, and looked for in the part.
    """

    crawl: str
    segment: str
    key: str
    sample_id: int

    def __str__(self) -> str:
        return f"{self.crawl}.{self.segment}.{self.key}.{self.sample_id & _UNSIGNED:016x}"

    @classmethod
    def parse(cls, text: str) -> SampleRef:
        """Raises ``ValueError`` for a text that is none."""
        match = _REF.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:100]!r} names no sample")
        crawl, segment, key, digits = match.groups()
        number = int(digits, 16)
        return cls(crawl, segment, key, number - 2**64 if number >= 2**63 else number)

    @property
    def part(self) -> int:
        """The number of its shard, which its part of the subset has, too."""
        return int(self.key[:_SHARD_DIGITS])


@dataclass(frozen=True, slots=True)
class Sample:
    """What a result shows. Width and height are the original image's."""

    ref: SampleRef
    url: str
    text: str
    width: int | None
    height: int | None
    license: str
    nsfw: str
    similarity: float
    language: str
    page_url: str
    sha256: str


class Part:
    """One part of a subset: its columns in memory, its vectors memory-mapped."""

    def __init__(self, part: SubsetPart) -> None:
        with pq.ParquetFile(part.parquet) as file:
            present = set(file.schema_arrow.names)
            table = file.read([name for name in COLUMNS if name in present])
        self._columns = {name: table[name].combine_chunks() for name in table.column_names}
        self.nbytes = int(table.nbytes)
        self.sample_ids: npt.NDArray[np.int64] = table["SAMPLE_ID"].to_numpy()
        # Opened now: the folder may be replaced, and these are the vectors of these rows.
        self._vectors = {modality: part.vectors(modality) for modality in MODALITIES}

    def value(self, name: str, row: int) -> Any:
        column = self._columns.get(name)
        return None if column is None else column[row].as_py()

    def values(self, row: int) -> dict[str, Any]:
        return {name: column[row].as_py() for name, column in self._columns.items()}

    def row_of(self, sample_id: int, guess: int) -> int | None:
        """The row that holds the sample; None if the part has it no more."""
        ids = self.sample_ids
        if 0 <= guess < len(ids) and ids[guess] == sample_id:
            return guess
        found = np.flatnonzero(ids == sample_id)
        return int(found[0]) if len(found) else None

    def vectors(self, rows: Sequence[int], modality: Modality) -> npt.NDArray[np.float32]:
        """``(len(rows), d)`` of unit length, as embedded."""
        taken = np.asarray(self._vectors[modality][np.asarray(rows, np.int64)], np.float32)
        norms = np.linalg.norm(taken, axis=1, keepdims=True)
        return cast("npt.NDArray[np.float32]", taken / np.maximum(norms, 1e-12))


@dataclass(frozen=True, slots=True)
class PartRow:
    """A row of a part, which it keeps in memory: to look at, and to let go."""

    part: Part
    row: int

    def value(self, name: str) -> Any:
        return self.part.value(name, self.row)


@dataclass(frozen=True, slots=True)
class Located:
    """What a part has of a sample, without the part: a query may touch thousands of parts."""

    values: Mapping[str, Any]
    vectors: Mapping[Modality, npt.NDArray[np.float32]]
    """``(d,)`` of unit length, of the modalities that were asked for."""

    def value(self, name: str) -> Any:
        return self.values.get(name)

    @property
    def sample(self) -> Sample:
        value = self.value
        return Sample(
            ref=SampleRef(value("crawl"), value("segment"), value("key"), value("SAMPLE_ID")),
            url=value("URL"),
            text=value("TEXT"),
            width=value("WIDTH"),
            height=value("HEIGHT"),
            license=value("LICENSE") or "?",
            nsfw=value("NSFW"),
            similarity=value("similarity"),
            language=value("LANGUAGE") or "",
            page_url=value("page_url") or "",
            sha256=value("sha256") or "",
        )


class Samples:
    """The samples of all subsets that an index was made of.

    ``subset_of(crawl, segment)`` gives a segment's `filtered_subset` folder.
    """

    def __init__(self, subset_of: SubsetOf, cache: ByteCache) -> None:
        self._subset_of = subset_of
        self._cache = cache

    def part(self, crawl: str, segment: str, number: int) -> Part | None:
        """As it is published now; None if there is none.

        Raises :class:`~laion_assets.knn.subset.SubsetError` if its rows and vectors differ.
        """
        folder = self._subset_of(crawl, segment)
        path = part_path(folder, number)
        for attempt in range(_READING_ATTEMPTS):
            try:
                before = identity(path)
                reading = partial(_read, folder, number, before)
                return self._cache.get((path, before), reading)
            except (FileNotFoundError, _ReplacedError):
                continue
            except SubsetError:
                # Replaced between rows and vectors, or wrong as it is.
                if attempt == _READING_ATTEMPTS - 1:
                    raise
        return None

    def locate(
        self,
        places: Sequence[Place | None],
        modalities: Sequence[Modality] = (),
        keep: Callable[[int, PartRow], bool] | None = None,
    ) -> list[Located | None]:
        """The sample of each place, wherever it is in its part now, with its vectors of some
        modalities; None once it was taken out.

        One part after another is looked at. ``keep`` is asked about each sample that is there, by
        its number among the places; those that it refuses are None, too.
        """
        by_part: dict[tuple[str, str, int], list[tuple[int, Place]]] = {}
        for number, place in enumerate(places):
            if place is not None:
                key = (place.crawl, place.segment, place.part)
                by_part.setdefault(key, []).append((number, place))
        found: list[Located | None] = [None] * len(places)
        for key, its_places in by_part.items():
            part = self.part(*key)
            if part is None:
                continue
            kept = []
            for number, place in its_places:
                row = part.row_of(place.sample_id, place.part_row)
                if row is not None and (keep is None or keep(number, PartRow(part, row))):
                    kept.append((number, row))
            rows = [row for _, row in kept]
            vectors = {modality: part.vectors(rows, modality) for modality in modalities}
            for i, (number, row) in enumerate(kept):
                found[number] = Located(
                    part.values(row), {modality: its[i] for modality, its in vectors.items()}
                )
        return found

    def find(self, ref: SampleRef) -> Located | None:
        place = Place(ref.crawl, ref.segment, ref.part, 0, ref.sample_id)
        return self.locate([place], MODALITIES)[0]


class _ReplacedError(Exception):
    """The partition was replaced while it was read: rows and vectors may not match."""


def _read(folder: Path, number: int, before: Identity) -> Part:
    part = Part(SubsetPart(folder, number))
    if identity(part_path(folder, number)) != before:
        raise _ReplacedError
    return part
