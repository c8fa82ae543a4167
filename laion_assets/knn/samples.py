"""Samples of the subsets, read by their places: metadata and vectors.

No whole segment is held in memory. A part of a subset (some 10,000 rows) is read once and kept
while it is among the most recently used; its vectors stay memory-mapped. Arrow reads a parquet file
by whole row groups, so a part is the least that can be read.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from cachetools import LRUCache

from laion_assets.files import Identity, open_files
from laion_assets.knn.subset import (
    MODALITIES,
    Modality,
    SubsetPart,
    Subsets,
    read_whole,
    subset_folder,
)
from laion_assets.layout import CRAWL_NAME

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
_REF: Final = re.compile(rf"({CRAWL_NAME.pattern})\.(\d{{2}})\.(\d{{9,12}})\.([0-9a-f]{{16}})")
_OPEN_FILES: Final = 65_536
"""Files that may be open, if the system allows that many."""
_FILES_PER_PART: Final = 8
"""Share of these files for each kept part: it has two mapped, and others need some as well."""
_CACHE_BYTES: Final = 2**26


@dataclass(frozen=True, slots=True)
class SamplePlace:
    """Place of a sample: row ``part_row`` of a part of its segment's subset."""

    crawl: str
    segment: str
    part: int
    part_row: int
    sample_id: int


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Name of a sample in URLs: where its image is stored, and its SAMPLE_ID.

    It stays valid when the index is rebuilt: the id is compared, and looked up in the part.
    """

    crawl: str
    segment: str
    key: str
    sample_id: int

    def __str__(self) -> str:
        return f"{self.crawl}.{self.segment}.{self.key}.{self.sample_id & _UNSIGNED:016x}"

    @classmethod
    def parse(cls, text: str) -> SampleRef:
        """Read a name back. Raises ``ValueError`` for any other text."""
        match = _REF.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:100]!r} names no sample")
        crawl, segment, key, digits = match.groups()
        number = int(digits, 16)
        return cls(crawl, segment, key, number - 2**64 if number >= 2**63 else number)

    @property
    def part(self) -> int:
        """Number of the sample's shard and of its part of the subset."""
        return int(self.key[:_SHARD_DIGITS])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row of a subset. Width and height are those of the original image."""

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

    @classmethod
    def of(cls, values: Mapping[str, Any], **more: Any) -> Self:
        """Build a sample from a row's columns; ``more`` are the fields that a subclass adds."""

        def value(name: str) -> Any:
            return values.get(name)

        return cls(
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
            **more,
        )


class Part:
    """One part of a subset: its columns in memory, its vectors of some modalities memory-mapped."""

    def __init__(self, part: SubsetPart, modalities: Sequence[Modality] = MODALITIES) -> None:
        with pq.ParquetFile(part.parquet) as file:
            present = set(file.schema_arrow.names)
            table = file.read([name for name in COLUMNS if name in present])
        self._columns = {name: table[name].combine_chunks() for name in table.column_names}
        self.nbytes = int(table.nbytes)
        self.sample_ids: npt.NDArray[np.int64] = table["SAMPLE_ID"].to_numpy()
        # Opened now: the folder may be replaced, and these are the vectors of these rows.
        self._vectors = {modality: part.vectors(modality) for modality in modalities}

    def value(self, name: str, row: int) -> Any:
        column = self._columns.get(name)
        return None if column is None else column[row].as_py()

    def values(self, row: int) -> dict[str, Any]:
        return {name: column[row].as_py() for name, column in self._columns.items()}

    def row_of(self, sample_id: int, guess: int) -> int | None:
        """The row that holds the sample; None if the part no longer has it."""
        ids = self.sample_ids
        if 0 <= guess < len(ids) and ids[guess] == sample_id:
            return guess
        found = np.flatnonzero(ids == sample_id)
        return int(found[0]) if len(found) else None

    def vectors(self, rows: Sequence[int], modality: Modality) -> npt.NDArray[np.float32]:
        """Vectors of some rows as embedded, ``(len(rows), d)`` of unit length."""
        taken = np.asarray(self._vectors[modality][np.asarray(rows, np.int64)], np.float32)
        norms = np.linalg.norm(taken, axis=1, keepdims=True)
        return cast("npt.NDArray[np.float32]", taken / np.maximum(norms, 1e-12))


@dataclass(frozen=True, slots=True)
class PartRow:
    """A row of a part. It keeps the part in memory: look at it and let it go."""

    part: Part
    row: int

    def value(self, name: str) -> Any:
        return self.part.value(name, self.row)


@dataclass(frozen=True, slots=True)
class Located:
    """A sample's row without its part, since a query may touch thousands of parts."""

    values: Mapping[str, Any]
    vectors: Mapping[Modality, npt.NDArray[np.float32]]
    """``(d,)`` of unit length, of the modalities that were asked for."""

    def value(self, name: str) -> Any:
        return self.values.get(name)

    @property
    def sample(self) -> Sample:
        return Sample.of(self.values)


class Samples:
    """The samples of all subsets that an index was built from. Several threads may share it.

    It keeps the most recently used parts, up to ``cache_bytes`` of metadata. Two threads that miss
    the same part both read it: that takes a few milliseconds, and neither waits for a lock.
    """

    def __init__(
        self,
        subsets: Subsets,
        cache_bytes: int = _CACHE_BYTES,
        modalities: Sequence[Modality] = MODALITIES,
    ) -> None:
        """``modalities``: those whose vectors :meth:`locate` may be asked for."""
        self._subsets, self._modalities = subsets, modalities
        most_parts = max(1, open_files(_OPEN_FILES) // _FILES_PER_PART)
        # A part counts as at least this many bytes, so that no more than `most_parts` are kept;
        # one that is larger than the cache is kept alone.
        least = -(-cache_bytes // most_parts)
        self._kept: LRUCache[tuple[Path, Identity], Part] = LRUCache(
            cache_bytes, lambda part: min(cache_bytes, max(least, part.nbytes))
        )
        self._lock = threading.Lock()

    def part(self, crawl: str, segment: str, number: int) -> Part | None:
        """A part as it is published now; None if there is none.

        Raises :class:`~laion_assets.knn.subset.SubsetError` if its rows and vectors differ.
        """
        part = SubsetPart(subset_folder(self._subsets, crawl, segment), number)
        found = read_whole(
            part, lambda seen: self._known(part, seen) or Part(part, self._modalities)
        )
        if found is None:
            return None
        seen, whole = found
        with self._lock:
            self._kept[part.parquet, seen] = whole
        return whole

    def _known(self, part: SubsetPart, seen: Identity) -> Part | None:
        with self._lock:
            return self._kept.get((part.parquet, seen))

    def locate(
        self,
        places: Sequence[SamplePlace | None],
        modalities: Sequence[Modality] = (),
        keep: Callable[[int, PartRow], bool] | None = None,
    ) -> list[Located | None]:
        """Find the sample of each place, wherever it is in its part now; None once it is gone.

        Parts are visited one after another.

        Args:
            places: None gives None.
            modalities: those whose vectors are wanted.
            keep: called with the number of a place and its sample's row; a sample that it refuses
                gives None, too.
        """
        by_part: dict[tuple[str, str, int], list[tuple[int, SamplePlace]]] = {}
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
        """Find a sample with its vectors; None if the subset does not have it."""
        place = SamplePlace(ref.crawl, ref.segment, ref.part, 0, ref.sample_id)
        return self.locate([place], MODALITIES)[0]
