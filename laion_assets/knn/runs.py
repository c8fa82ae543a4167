"""An index folder opened for search: vectors in, row numbers and scores out.

A query finds its cells once and looks into them in every run: what a segment added last costs a
query is one more, short, piece of each list. The candidates of all runs are then scored exactly
with the subset's own vectors, and the best of them are the answer.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from laion_assets.files import identity, open_files
from laion_assets.knn.codec import Codec, Encoder
from laion_assets.knn.files import (
    IndexMismatchError,
    IndexSummary,
    Run,
    SearchParameters,
    SegmentRows,
    codec_dir,
    map_index,
    truth_name,
    vectors_name,
)
from laion_assets.knn.lists import ListsFile, map_lists
from laion_assets.knn.subset import MODALITIES, Modality, SubsetError, SubsetPart, Vectors
from laion_assets.knn.truth import Truth

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
SubsetOf = Callable[[str, str], Path]
"""A crawl and a segment -> the folder of its `filtered_subset`."""

logger = logging.getLogger(__name__)

_OPEN_PARTS: Final = 4_096
"""Parts of subsets kept mapped, if so many files may be open."""
_READING_ATTEMPTS: Final = 3
_ATTEMPTS: Final = 5


class StaleIndexError(RuntimeError):
    """The subset was made anew after the index: its rows are other samples now."""


@dataclass(frozen=True)
class Place:
    """Where a row's sample is: row ``part_row`` of a part of the segment's subset."""

    crawl: str
    segment: str
    part: int
    part_row: int
    sample_id: int


@dataclass(frozen=True)
class _Stored:
    """The vectors of a part as it is now, and the rows in it of those that were indexed; -1 for
    one that is there no more. None: all are where they were."""

    vectors: Vectors
    at: Ints | None = None


class _Opened:
    """One run's files of one modality."""

    index: Any
    selector: Any

    def __init__(self, run: Run, first: int, index: Any, owned: Any = None) -> None:
        import faiss

        self.index = index
        self.first, self.n, self.codec = first, run.n, run.codec
        self._owned = owned
        self.selector = None
        if self.n < run.rows:
            self._bits = np.packbits(run.live(), bitorder="little")
            self.selector = faiss.IDSelectorBitmap(run.rows, faiss.swig_ptr(self._bits))


class OpenIndex:
    """An index folder, memory-mapped. Several threads may search it at once.

    ``subset_of(crawl, segment)`` gives the folder of a segment's `filtered_subset`, where exact
    scores, vectors and samples come from. A row's number counts through all runs and is the
    same as long as the index is.
    """

    def __init__(self, index_dir: Path, subset_of: SubsetOf) -> None:
        self.folder = index_dir
        for attempt in range(_ATTEMPTS):
            try:
                self._open(index_dir)
                if IndexSummary.read(index_dir) == self.summary:
                    break
            except FileNotFoundError:
                # The folder was replaced between two of its files: the new one is whole.
                if attempt == _ATTEMPTS - 1 or not (index_dir / "index.json").exists():
                    raise
        else:
            raise IndexMismatchError(f"{index_dir} is being replaced all the time")
        self.stale: set[tuple[str, str]] = set()
        self._subset_of = subset_of
        self._vectors: OrderedDict[tuple[Modality, int], _Stored] = OrderedDict()
        self._most_open = min(_OPEN_PARTS, open_files(4 * _OPEN_PARTS) // 4)
        self._lock = Lock()

    def _open(self, index_dir: Path) -> None:
        self.summary = IndexSummary.read(index_dir)
        self.firsts = np.cumsum([0, *(run.rows for run in self.summary.runs)])
        self.codecs = {
            name: Codec.open(codec_dir(index_dir, name)) for name in self.summary.codecs()
        }
        self._encoders: dict[tuple[str, Modality], Encoder] = {
            (name, modality): codec.encoder(modality)
            for name, codec in self.codecs.items()
            for modality in MODALITIES
        }
        self._opened: dict[Modality, list[_Opened]] = {
            modality: [
                self._open_run(index_dir, run, int(first), modality)
                for first, run in zip(self.firsts, self.summary.runs, strict=False)
            ]
            for modality in MODALITIES
        }
        self._groups = sorted({run.codec for run in self.summary.runs if run.n})
        self._ids = [
            np.load(index_dir / run.folder / "ids.npy", mmap_mode="r", allow_pickle=False)
            for run in self.summary.runs
        ]
        for run, ids in zip(self.summary.runs, self._ids, strict=True):
            if len(ids) != run.rows:
                raise IndexMismatchError(
                    f"{index_dir / run.folder}: {len(ids)} ids, but index.json says {run.rows}"
                )
        # Parts in the order of their rows: a row's part is found by bisection.
        self._parts: list[tuple[SegmentRows, int]] = []
        starts = []
        for first, run in zip(self.firsts, self.summary.runs, strict=False):
            start = int(first)
            for segment in run.segments:
                for number, rows in segment.parts:
                    self._parts.append((segment, number))
                    starts.append(start)
                    start += rows
        self._starts = np.array(starts, dtype=np.int64)
        self._rows = np.diff(self._starts, append=self.firsts[-1]).tolist()

    def _open_run(self, index_dir: Path, run: Run, first: int, modality: Modality) -> _Opened:
        path = index_dir / run.folder / vectors_name(run.kind, modality)
        if run.codec:
            lists = map_lists(path)
            opened = _Opened(run, first, self._encoders[run.codec, modality].over(lists), lists)
        else:
            opened = _Opened(run, first, map_index(path))
        if opened.index.ntotal != run.rows:
            raise IndexMismatchError(
                f"{path} holds {opened.index.ntotal} vectors, but index.json says {run.rows}"
            )
        return opened

    def groups(self) -> list[str]:
        """The codecs that runs are of; the empty one stands for flat runs."""
        return self._groups

    def nearest(
        self,
        queries: Floats,
        k: int,
        modality: Modality,
        *,
        parameters: SearchParameters | None = None,
        only: str | None = None,
    ) -> tuple[Floats, Ints]:
        """Scores and row numbers, ``(q, k)``, best first; -inf and -1 where there are no more.

        ``queries`` ``(q, d)`` of unit norm. ``parameters`` instead of those recorded; ``only``
        looks into the runs of one codec.
        """
        scores, rows = [], []
        for group in self.groups() if only is None else [only]:
            if group:
                found = self._coded(queries, k, modality, group, parameters)
            else:
                found = self._flat(queries, k, modality)
            scores.append(found[0])
            rows.append(found[1])
        if not rows:
            empty = np.full((len(queries), k), -np.inf, np.float32)
            return empty, np.full((len(queries), k), -1, np.int64)
        return _best(np.concatenate(scores, axis=1), np.concatenate(rows, axis=1), k)

    def _with_rows(self, modality: Modality, codec: str) -> list[_Opened]:
        return [one for one in self._opened[modality] if one.codec == codec and one.n]

    def _flat(self, queries: Floats, k: int, modality: Modality) -> tuple[Floats, Ints]:
        import faiss

        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = [], []
        for opened in self._with_rows(modality, ""):
            parameters = None
            if opened.selector is not None:
                parameters = faiss.SearchParameters(sel=opened.selector)
            found, ids = opened.index.search(queries, min(k, opened.n), params=parameters)
            scores.append(found)
            rows.append(np.where(ids >= 0, ids + opened.first, -1))
        return _best(np.concatenate(scores, axis=1), np.concatenate(rows, axis=1), k)

    def _coded(
        self,
        queries: Floats,
        k: int,
        modality: Modality,
        codec: str,
        parameters: SearchParameters | None,
    ) -> tuple[Floats, Ints]:
        parameters = parameters or self.summary.parameters(codec, modality, k)
        scores, rows = self.candidates(
            queries, parameters.candidates(k), modality, codec, parameters.nprobe
        )
        if parameters.rerank:
            scores = self.exact(queries, rows, modality)
            rows = np.where(np.isfinite(scores), rows, -1)
        return _best(scores, rows, k)

    def candidates(
        self, queries: Floats, wanted: int, modality: Modality, codec: str, nprobe: int
    ) -> tuple[Floats, Ints]:
        """The best ``wanted`` rows by their codes alone: ``(q, wanted)``, or fewer columns."""
        import faiss

        encoder = self._encoders[codec, modality]
        nprobe = min(nprobe, encoder.ivf.nlist)
        rotated = encoder.rotated(np.ascontiguousarray(queries, dtype=np.float32))
        near, cells = encoder.cells(rotated, nprobe)
        n = len(rotated)
        scores, rows = [], []
        for opened in self._with_rows(modality, codec):
            here = min(wanted, opened.n)
            found = np.empty((n, here), dtype=np.float32)
            ids = np.empty((n, here), dtype=np.int64)
            opened.index.search_preassigned_c(
                n,
                faiss.swig_ptr(rotated),
                here,
                faiss.swig_ptr(cells),
                faiss.swig_ptr(near),
                faiss.swig_ptr(found),
                faiss.swig_ptr(ids),
                False,
                faiss.SearchParametersIVF(nprobe=nprobe, sel=opened.selector),
            )
            scores.append(found)
            rows.append(np.where(ids >= 0, ids + opened.first, -1))
        if len(rows) == 1:
            return scores[0], rows[0]
        both = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
        return _best(*both, min(wanted, both[0].shape[1]))

    def exact(self, queries: Floats, rows: Ints, modality: Modality) -> Floats:
        """The true scores of each query's rows, ``(q, r)``; -inf where the row is -1.

        Where a segment's subset was made anew since, a sample is found at the row that it has now;
        one that is there no more has no score (-inf), and ``stale`` names the segment.
        """
        scores = np.full(rows.shape, -np.inf, dtype=np.float32)
        for query, its_rows, its_scores in zip(queries, rows, scores, strict=True):
            order = np.argsort(its_rows)
            order = order[np.searchsorted(its_rows, 0, sorter=order) :]
            vectors, gone = self._in_order(its_rows[order], modality)
            its_scores[order] = vectors.astype(np.float32) @ query
            if gone is not None:
                its_scores[order[gone]] = -np.inf
        return scores

    def vectors(self, rows: Ints, modality: Modality) -> npt.NDArray[np.float16]:
        """The subset's own vectors of some rows, ``(n, d)``.

        Raises :class:`StaleIndexError` if the subset has one of these samples no more.
        """
        order = np.argsort(rows)
        out = np.empty((len(rows), self.summary.d), dtype=np.float16)
        out[order], gone = self._in_order(rows[order], modality)
        if gone is not None and gone.any():
            place = self.places(rows[order][gone][:1])[0]
            raise StaleIndexError(
                f"{place.crawl}|{place.segment} has sample {place.sample_id} no more: make the "
                "index anew"
            )
        return out

    def _in_order(
        self, rows: Ints, modality: Modality
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_] | None]:
        """The vectors of ascending rows, each part gone to once; and which rows have none any
        more, None if all have."""
        out = np.empty((len(rows), self.summary.d), dtype=np.float16)
        gone: npt.NDArray[np.bool_] | None = None
        first = 0
        while first < len(rows):
            part = int(self._starts.searchsorted(rows[first], side="right")) - 1
            stored, start = self._part(part, modality), int(self._starts[part])
            last = first + int(rows[first:].searchsorted(start + self._rows[part]))
            at = rows[first:last] - start
            if stored.at is not None:
                at = stored.at[at]
                if gone is None:
                    gone = np.zeros(len(rows), dtype=bool)
                gone[first:last] = at < 0
            if len(stored.vectors):
                # clip: numpy needs no copy to undo; no row that is there is out of bounds.
                stored.vectors.take(at, axis=0, out=out[first:last], mode="clip")
            else:
                out[first:last] = 0
            first = last
        return out, gone

    def _part(self, number: int, modality: Modality) -> _Stored:
        key = (modality, number)
        with self._lock:
            known = self._vectors.get(key)
            if known is not None:
                self._vectors.move_to_end(key)
                return known
        stored = self._read(number, modality)
        if stored is None:
            # Not kept: it may be there again.
            self._tell_stale(number)
            nothing = np.empty((0, self.summary.d), dtype=np.float16)
            return _Stored(nothing, np.full(self._rows[number], -1))
        if stored.at is not None:
            self._tell_stale(number)
        with self._lock:
            self._vectors[key] = stored
            while len(self._vectors) > self._most_open:
                self._vectors.popitem(last=False)
        return stored

    def _read(self, number: int, modality: Modality) -> _Stored | None:
        """None if the part, or its vectors, are not there."""
        segment, part_number = self._parts[number]
        part = SubsetPart(self._subset_of(segment.crawl, segment.segment), part_number)
        for _ in range(_READING_ATTEMPTS):
            try:
                before = identity(part.parquet)
                present = part.sample_ids()
                vectors = np.asarray(part.vectors(modality))
                after = identity(part.parquet)
            except (FileNotFoundError, SubsetError):
                continue
            if before == after:
                return _Stored(vectors, _moved(self._indexed_ids(number), present))
        return None

    def _indexed_ids(self, number: int) -> Ints:
        start = int(self._starts[number])
        run = int(np.searchsorted(self.firsts, start, side="right")) - 1
        first = start - int(self.firsts[run])
        ids: Ints = np.asarray(self._ids[run][first : first + self._rows[number]])
        return ids

    def _tell_stale(self, number: int) -> None:
        segment, _ = self._parts[number]
        name = (segment.crawl, segment.segment)
        if name not in self.stale:
            self.stale.add(name)
            logger.warning(
                "%s|%s: its subset was made anew after %s: what left it is not found any more, "
                "what came is found when the index is made anew",
                *name,
                self.folder,
            )

    def places(self, rows: Sequence[int] | Ints) -> list[Place]:
        """Where each row's sample is. Raises ``IndexError`` for a row that the files have not."""
        found = []
        for row in rows:
            if not 0 <= row < self.firsts[-1]:
                raise IndexError(f"there is no row {row}")
            part = int(np.searchsorted(self._starts, row, side="right")) - 1
            run = int(np.searchsorted(self.firsts, row, side="right")) - 1
            segment, number = self._parts[part]
            sample_id = int(self._ids[run][row - self.firsts[run]])
            part_row = int(row - self._starts[part])
            found.append(Place(segment.crawl, segment.segment, number, part_row, sample_id))
        return found

    def cell_sizes(self, codec: str, modality: Modality) -> Ints:
        """How many vectors each cell of a codec holds, all runs together."""
        paths = [
            self.folder / run.folder / vectors_name(run.kind, modality)
            for run in self.summary.runs
            if run.codec == codec
        ]
        sizes: Ints = np.sum([ListsFile.open(path).sizes for path in paths], axis=0)
        return sizes

    def truth(self, codec: str, modality: Modality) -> Truth:
        """The exact neighbours of the codec's queries among the vectors that it encoded."""
        truths = [
            Truth.read(self.folder / run.folder / truth_name(modality)).renumbered(
                run.renumbering(int(first))
            )
            for first, run in zip(self.firsts, self.summary.runs, strict=False)
            if run.codec == codec
        ]
        return Truth.best(truths)


def _moved(indexed: Ints, present: Ints) -> Ints | None:
    """The row of each indexed SAMPLE_ID among those that are there now, -1 for none; None if
    nothing has moved."""
    if np.array_equal(indexed, present):
        return None
    if not len(present):
        return np.full(len(indexed), -1)
    order = np.argsort(present)
    guess = order[np.searchsorted(present, indexed, sorter=order).clip(max=len(present) - 1)]
    return np.where(present[guess] == indexed, guess, -1)


def _best(scores: Floats, rows: Ints, k: int) -> tuple[Floats, Ints]:
    """The ``k`` best of each line, padded with -inf and -1; of equal scores the lower row first."""
    scores = np.where(rows >= 0, scores, -np.inf).astype(np.float32)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    missing = k - scores.shape[1]
    if missing > 0:
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    return scores, rows
