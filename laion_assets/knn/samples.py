"""Samples of the subsets, read by their places: metadata and vectors.

No whole segment is held in memory. Arrow reads a parquet file by whole row groups, so a row group
is the least that can be read; a subset has small ones for that. It is kept while it is among the
most recently used. No file stays open.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from cachetools import LRUCache

from laion_assets.files import Identity, identity
from laion_assets.knn.subset import (
    MODALITIES,
    Modality,
    SubsetError,
    SubsetPart,
    Subsets,
    heads_of,
    modalities_of,
    reading,
    subset_folder,
    subset_parts,
)
from laion_assets.knn.vectors import VectorFiles
from laion_assets.layout import CRAWL_NAME, LIST_CRAWL_NAME
from laion_assets.schemas import SCORE_PREFIX, score_columns

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
_CRAWL: Final = f"{CRAWL_NAME.pattern}|{LIST_CRAWL_NAME.pattern}"
_REF: Final = re.compile(rf"({_CRAWL})\.(\d{{2}})\.(\d{{9,12}})\.([0-9a-f]{{16}})")
_CACHE_BYTES: Final = 2**26
_PARTS: Final = 65_536
"""Parts of which it is kept where their row groups begin; some 500 bytes each."""
_EVERY: Final = -1
_NOWHERE: Final = -1
_READING_ATTEMPTS: Final = 3

Ints = npt.NDArray[np.int64]


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

    It stays valid when index and subset are rebuilt: the segment's subset is asked for the id.
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
    similarity: float | None
    language: str
    page_url: str
    sha256: str
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Heads' scores, by column."""

    @classmethod
    def of(cls, values: Mapping[str, Any], **more: Any) -> Self:
        """Build a sample from a row's columns; ``more`` are the fields that a subclass adds."""

        def value(name: str) -> Any:
            return values.get(name)

        return cls(
            ref=SampleRef(
                value("crawl") or "",
                value("segment") or "",
                value("key") or "",
                value("SAMPLE_ID"),
            ),
            url=value("URL") or "",
            text=value("TEXT") or "",
            width=value("WIDTH"),
            height=value("HEIGHT"),
            license=value("LICENSE") or "?",
            nsfw=value("NSFW") or "",
            similarity=value("similarity"),
            language=value("LANGUAGE") or "",
            page_url=value("page_url") or "",
            sha256=value("sha256") or "",
            scores={name: values[name] for name in score_columns(values)},
            **more,
        )


class RowGroup:
    """One row group of a part of a subset, in memory; the part has ``rows``.

    ``group`` may be :data:`_EVERY` for the SAMPLE_IDs of all rows. ``scores`` are the heads'
    columns that are read, None for all.
    """

    def __init__(
        self,
        part: SubsetPart,
        seen: Identity,
        starts: Ints,
        group: int,
        file: pq.ParquetFile,
        scores: Collection[str] | None = None,
    ) -> None:
        if group == _EVERY:
            table = file.read(["SAMPLE_ID"], use_threads=False)
        else:
            stored = _stored(file.schema_arrow.names, scores)
            table = file.read_row_group(group, list(stored), use_threads=False)
            table = table.rename_columns([stored[name] for name in table.column_names])
        self.part, self.seen = part, seen
        self.rows, self._first = int(starts[-1]), 0 if group == _EVERY else int(starts[group])
        self.nbytes = int(table.nbytes)
        self.sample_ids: npt.NDArray[np.int64] = table["SAMPLE_ID"].to_numpy()
        self._columns = {name: table[name].combine_chunks() for name in table.column_names}

    def is_current(self) -> bool:
        """Whether the part is still the one that was read."""
        try:
            return identity(self.part.parquet) == self.seen
        except FileNotFoundError:
            return False

    def sample_id(self, row: int) -> int:
        return int(self.sample_ids[row - self._first])

    def value(self, name: str, row: int) -> Any:
        column = self._columns.get(name)
        return None if column is None else column[row - self._first].as_py()

    def values(self, row: int) -> dict[str, Any]:
        return {name: column[row - self._first].as_py() for name, column in self._columns.items()}


@dataclass(frozen=True, slots=True)
class PartRow:
    """A row of a part. It keeps the row group in memory: look at it and let it go."""

    group: RowGroup
    row: int

    def value(self, name: str) -> Any:
        return self.group.value(name, self.row)


@dataclass(frozen=True, slots=True)
class Located:
    """A sample's row without its row group, since a query may touch thousands of them."""

    values: Mapping[str, Any]
    vectors: Mapping[Modality, npt.NDArray[np.float32]]
    """``(d,)`` of unit length, of the modalities that were asked for and that the sample has."""

    def value(self, name: str) -> Any:
        return self.values.get(name)

    @property
    def sample(self) -> Sample:
        return Sample.of(self.values)


class Samples:
    """The samples of all subsets that an index was built from. Several threads may share it.

    It keeps the most recently used row groups, up to ``cache_bytes``. Two threads that miss the
    same row group both read it: that takes a millisecond, and neither waits for a lock.

    ``heads``: name -> digest of the heads whose scores are read. A segment that another version of
    a head scored has no scores of it then. None reads all scores, whatever they are of.
    """

    def __init__(
        self,
        subsets: Subsets,
        cache_bytes: int = _CACHE_BYTES,
        heads: Mapping[str, str] | None = None,
    ) -> None:
        self._subsets = subsets
        self._heads = heads
        self._starts: LRUCache[tuple[Path, Identity], Ints] = LRUCache(_PARTS)
        self._kept: LRUCache[tuple[Path, Identity, int], RowGroup] = LRUCache(
            cache_bytes, lambda group: min(cache_bytes, group.nbytes)
        )
        self._lock = threading.Lock()
        self._vectors = VectorFiles()

    def locate(
        self,
        places: Sequence[SamplePlace | None],
        modalities: Sequence[Modality] = (),
        keep: Callable[[int, PartRow], bool] | None = None,
    ) -> list[Located | None]:
        """Find the sample of each place, wherever it is in its subset now; None once it is gone.

        Segments are visited one after another. Raises
        :class:`~laion_assets.knn.subset.SubsetError` if a part's rows and vectors differ in
        number, or a file is damaged.

        Args:
            places: None gives None.
            modalities: those whose vectors are wanted.
            keep: called with the number of a place and its sample's row; a sample that it refuses
                gives None, too.
        """
        by_segment: dict[tuple[str, str], dict[int, SamplePlace]] = {}
        for number, place in enumerate(places):
            if place is not None:
                by_segment.setdefault((place.crawl, place.segment), {})[number] = place
        located: list[Located | None] = [None] * len(places)
        for (crawl, segment), its in by_segment.items():
            folder = subset_folder(self._subsets, crawl, segment)
            found = self._find(folder, its)
            if keep is not None:
                found = {number: row for number, row in found.items() if keep(number, row)}
            for _ in range(_READING_ATTEMPTS):
                vectors = self._vectors_of(found, modalities)
                if vectors is not None:
                    break
                found = self._find(folder, {number: its[number] for number in found})
            for number, own in (vectors or {}).items():
                at = found[number]
                values = {"crawl": crawl, "segment": segment} | at.group.values(at.row)
                located[number] = Located(values, own)
        return located

    def find(self, ref: SampleRef) -> Located | None:
        """Find a sample with its vectors; None if the subset does not have it."""
        place = SamplePlace(ref.crawl, ref.segment, _NOWHERE, _NOWHERE, ref.sample_id)
        return self.locate([place], MODALITIES)[0]

    def _find(self, folder: Path, places: Mapping[int, SamplePlace]) -> dict[int, PartRow]:
        """The rows of a segment's samples, by the numbers of their places; without those gone."""
        found: dict[int, PartRow] = {}
        by_part: dict[int, dict[int, SamplePlace]] = {}
        for number, place in places.items():
            by_part.setdefault(place.part, {})[number] = place
        for part, its in by_part.items():
            groups = self._groups(SubsetPart(folder, part), [at.part_row for at in its.values()])
            for number, place in its.items():
                group = groups.get(place.part_row)
                if group and group.sample_id(place.part_row) == place.sample_id:
                    found[number] = PartRow(group, place.part_row)
        lost = {place.sample_id: n for n, place in places.items() if n not in found}
        for here in subset_parts(folder) if lost and folder.is_dir() else ():
            # The subset was replaced: its samples may be at other rows and in other parts.
            for every in self._groups(here).values():
                rows = np.flatnonzero(np.isin(every.sample_ids, np.array([*lost], np.int64)))
                for row, group in self._groups(here, rows.tolist()).items():
                    if (moved := lost.get(group.sample_id(row))) is not None:
                        found[moved] = PartRow(group, row)
        return found

    def _groups(self, part: SubsetPart, rows: Sequence[int] | None = None) -> dict[int, RowGroup]:
        """The row group of each of the rows that the part has now.

        Without ``rows``, the SAMPLE_IDs of all of them, as if that were a row group.
        """
        path, groups = part.parquet, dict[int, RowGroup]()
        try:
            seen = identity(path)
            with self._lock:
                starts = self._starts.get((path, seen))
                of = {} if starts is None else _groups_of(rows, starts)
                for row, number in of.items():
                    if (kept := self._kept.get((path, seen, number))) is not None:
                        groups[row] = kept
            if starts is not None and len(groups) == len(of):
                return groups
            return self._load(part, rows)
        except FileNotFoundError:
            return {}

    def _load(self, part: SubsetPart, rows: Sequence[int] | None) -> dict[int, RowGroup]:
        path = part.parquet
        with (
            reading(path),
            pa.OSFile(str(path)) as file,
            pq.ParquetFile(file, pre_buffer=False) as opened,
        ):
            seen, starts = identity(file.fileno()), _starts(opened)
            of = _groups_of(rows, starts)
            with self._lock:
                kept = {number: self._kept.get((path, seen, number)) for number in of.values()}
            scores = self._scores(part.folder)
            groups = {
                number: have or RowGroup(part, seen, starts, number, opened, scores)
                for number, have in kept.items()
            }
        with self._lock:
            self._starts[path, seen] = starts
            for number, group in groups.items():
                self._kept[path, seen, number] = group
        return {row: groups[number] for row, number in of.items()}

    def _scores(self, folder: Path) -> Collection[str] | None:
        """The columns of the wanted heads that scored a subset; None for all."""
        if self._heads is None:
            return None
        same = self._heads.items() & heads_of(folder).items() if self._heads else ()
        return {f"{SCORE_PREFIX}{name}" for name, _ in same}

    def _vectors_of(
        self, found: Mapping[int, PartRow], modalities: Sequence[Modality]
    ) -> dict[int, dict[Modality, npt.NDArray[np.float32]]] | None:
        """Vectors of rows, by the numbers of their places; None if a part was replaced since."""
        vectors: dict[int, dict[Modality, npt.NDArray[np.float32]]] = {n: {} for n in found}
        by_part: dict[SubsetPart, list[int]] = {}
        for number, at in found.items() if modalities else ():
            by_part.setdefault(at.group.part, []).append(number)
        for part, numbers in by_part.items():
            numbers.sort(key=lambda number: found[number].row)
            rows = np.array([found[number].row for number in numbers], np.int64)
            problem = None
            try:
                # Images without captions have no text vectors.
                for modality in {*modalities} & {*modalities_of([part])}:
                    header, taken = self._vectors.read(str(part.vectors_path(modality)), rows)
                    if header.rows != (n := found[numbers[0]].group.rows):
                        problem = f"{part.parquet} has {n} rows, its {modality}s {header.rows}"
                    for number, vector in zip(numbers, _unit(taken), strict=True):
                        vectors[number][modality] = vector
            except (FileNotFoundError, SubsetError) as error:
                problem = str(error)
            if not all(found[number].group.is_current() for number in numbers):
                return None
            if problem:
                raise SubsetError(problem)
        return vectors


def _stored(present: Sequence[str], scores: Collection[str] | None) -> dict[str, str]:
    """A file's column -> the one of :data:`COLUMNS` that it is, or a head's (of ``scores``, None
    for any). In files that are no
    subset, such as those that embed wrote, the names may be in lower case, and fewer."""
    known = {
        name if name in present else name.lower(): name
        for name in COLUMNS
        if name in present or name.lower() in present
    }
    of_heads = score_columns(present)
    return known | {name: name for name in of_heads if scores is None or name in scores}


def _starts(parquet: pq.ParquetFile) -> Ints:
    """First row of each row group, and the number of all rows."""
    about = parquet.metadata
    sizes = [about.row_group(group).num_rows for group in range(about.num_row_groups)]
    return np.cumsum([0, *sizes], dtype=np.int64)


def _groups_of(rows: Sequence[int] | None, starts: Ints) -> dict[int, int]:
    """The number of the row group of each of the rows that there are."""
    if rows is None:
        return {_EVERY: _EVERY}
    within = np.array([row for row in rows if 0 <= row < starts[-1]], np.int64)
    return dict(
        zip(within.tolist(), (starts.searchsorted(within, "right") - 1).tolist(), strict=True)
    )


def _unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    taken = vectors.astype(np.float32)
    norms = np.linalg.norm(taken, axis=1, keepdims=True)
    return cast("npt.NDArray[np.float32]", taken / np.maximum(norms, 1e-12))
