"""An index folder opened for search: vectors in, row numbers and scores out.

A query finds its cells once and searches them in every index run, so the newest segment adds only
one more short piece to each list. The candidates of all runs are then scored exactly with the
subset's own vectors, and the best of them are the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from laion_assets.knn.codec import Codec, Encoder
from laion_assets.knn.files import (
    IndexMismatchError,
    IndexRun,
    IndexSummary,
    SearchParameters,
    codec_dir,
    map_index,
    truth_name,
    vectors_name,
)
from laion_assets.knn.lists import ListsFile, map_lists
from laion_assets.knn.mapped import MappedFiles
from laion_assets.knn.rows import IndexRows, RowVectors
from laion_assets.knn.samples import SamplePlace
from laion_assets.knn.subset import MODALITIES, Modality, Subsets
from laion_assets.knn.truth import Truth

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_ATTEMPTS: Final = 5
_EXACT_AT_ONCE: Final = 16_384
"""Pairs of a query and a row whose vectors are in memory at a time."""


class StaleIndexError(RuntimeError):
    """The subset was rebuilt after the index and has lost a sample of it."""

    @classmethod
    def of(cls, place: SamplePlace) -> StaleIndexError:
        return cls(
            f"{place.crawl}|{place.segment} no longer has sample {place.sample_id}: "
            "rebuild the index"
        )


class _Opened:
    """One index run's files of one modality."""

    index: Any
    selector: Any

    def __init__(self, run: IndexRun, first: int, index: Any, owned: Any = None) -> None:
        import faiss

        self.index, self.run = index, run
        self.first, self.n, self.codec = first, run.n, run.codec
        self._owned = owned
        self.selector = None
        if self.n < run.rows:
            self._bits = run.live_bits()
            self.selector = faiss.IDSelectorBitmap(run.rows, faiss.swig_ptr(self._bits))


class OpenIndex:
    """An index folder, memory-mapped. Several threads may search it at once.

    Exact scores, vectors and samples come from ``subsets``. Row numbers count through all index
    runs and stay the same as long as the index does. ``stale`` holds the ``(crawl, segment)`` of
    each subset that was found to be newer than the index.
    """

    def __init__(self, index_dir: Path, subsets: Subsets) -> None:
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
            raise IndexMismatchError(f"{index_dir} was replaced each time while it was opened")
        self._mapped = MappedFiles(self._mapped_paths())
        self._vectors = RowVectors(self._rows, subsets, self.summary.d)
        self.stale = self._vectors.stale

    def _open(self, index_dir: Path) -> None:
        self.summary = IndexSummary.read(index_dir)
        self._rows = IndexRows(index_dir, self.summary)
        self.firsts = self._rows.firsts
        self.codecs = {
            name: Codec.open(codec_dir(index_dir, name)) for name in self.summary.codecs()
        }
        self._encoders: dict[tuple[str, Modality], Encoder] = {
            (name, modality): codec.encoder(modality)
            for name, codec in self.codecs.items()
            for modality in codec.summary.modalities
        }
        self._opened: dict[Modality, list[_Opened]] = {
            modality: [
                self._open_run(index_dir, run, int(first), modality)
                for first, run in zip(self.firsts, self.summary.runs, strict=False)
                if modality in run.modalities
            ]
            for modality in MODALITIES
        }

    def _mapped_paths(self) -> list[Path]:
        return [
            self.folder / run.folder / name
            for run in self.summary.runs
            for name in (
                "ids.npy",
                *(vectors_name(run.kind, modality) for modality in run.modalities),
            )
        ]

    def _open_run(self, index_dir: Path, run: IndexRun, first: int, modality: Modality) -> _Opened:
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

    def nearest(
        self,
        queries: Floats,
        k: int,
        modality: Modality,
        *,
        parameters: SearchParameters | None = None,
        runs: Sequence[IndexRun] | None = None,
    ) -> tuple[Floats, Ints]:
        """Scores and row numbers, ``(q, k)``, best first, padded with -inf and -1.

        Args:
            queries: ``(q, d)`` float32, of unit norm.
            k: number of results per query.
            modality: the index to search.
            parameters: used instead of the recorded ones.
            runs: search only these index runs.

        Raises :class:`~laion_assets.knn.mapped.IndexDamagedError` if a file was cut, and
        :class:`~laion_assets.knn.subset.SubsetError` for damaged vectors.
        """
        self._mapped.check()
        scores, rows = [], []
        chosen = self.summary.runs if runs is None else runs
        chosen = [run for run in chosen if modality in run.modalities]
        for group in sorted({run.codec for run in chosen if run.n}):
            its_runs = [run for run in chosen if run.codec == group]
            if group:
                found = self._coded(queries, k, modality, its_runs, parameters)
            else:
                found = self._flat(queries, k, modality, its_runs)
            scores.append(found[0])
            rows.append(found[1])
        if not rows:
            empty = np.full((len(queries), k), -np.inf, np.float32)
            return empty, np.full((len(queries), k), -1, np.int64)
        return _best(np.concatenate(scores, axis=1), np.concatenate(rows, axis=1), k)

    def _with_rows(self, modality: Modality, runs: Sequence[IndexRun]) -> list[_Opened]:
        folders = {run.folder for run in runs}
        return [one for one in self._opened[modality] if one.run.folder in folders and one.n]

    def _flat(
        self, queries: Floats, k: int, modality: Modality, runs: Sequence[IndexRun]
    ) -> tuple[Floats, Ints]:
        import faiss

        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = [], []
        for opened in self._with_rows(modality, runs):
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
        runs: Sequence[IndexRun],
        parameters: SearchParameters | None,
    ) -> tuple[Floats, Ints]:
        parameters = parameters or self.summary.parameters(runs[0].codec, modality, k)
        scores, rows = self.candidates(
            queries, parameters.candidates(k), modality, runs, parameters.nprobe
        )
        if parameters.rerank:
            scores = self.exact(queries, rows, modality)
            rows = np.where(np.isfinite(scores), rows, -1)
        return _best(scores, rows, k)

    def candidates(
        self,
        queries: Floats,
        wanted: int,
        modality: Modality,
        runs: Sequence[IndexRun],
        nprobe: int,
    ) -> tuple[Floats, Ints]:
        """Scores and rows of the best ``wanted`` of a codec's ``runs`` by their codes alone.

        ``(q, wanted)``, or fewer columns.
        """
        import faiss

        encoder = self._encoders[runs[0].codec, modality]
        nprobe = min(nprobe, encoder.ivf.nlist)
        rotated = encoder.rotated(np.ascontiguousarray(queries, dtype=np.float32))
        near, cells = encoder.cells(rotated, nprobe)
        n = len(rotated)
        scores, rows = [np.empty((n, 0), np.float32)], [np.empty((n, 0), np.int64)]
        for opened in self._with_rows(modality, runs):
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
        both = np.concatenate(scores, axis=1), np.concatenate(rows, axis=1)
        return _best(*both, min(wanted, both[0].shape[1]))

    def exact(self, queries: Floats, rows: Ints, modality: Modality) -> Floats:
        """True scores of each query's rows, ``(q, r)``; -inf where the row is -1.

        A sample that moved, because its segment's subset was rebuilt, is found at its new row. One
        that is gone has the score -inf, and ``stale`` names the segment.
        """
        scores = np.full(rows.size, -np.inf, dtype=np.float32)
        order = np.argsort(rows, axis=None, kind="stable")
        sorted_rows = rows.ravel()[order]
        # All queries' rows in one ascending pass: each file of vectors is opened once.
        for first in range(int(sorted_rows.searchsorted(0)), len(order), _EXACT_AT_ONCE):
            here = order[first : first + _EXACT_AT_ONCE]
            wanted, which = np.unique(
                sorted_rows[first : first + _EXACT_AT_ONCE], return_inverse=True
            )
            vectors, gone = self._vectors.ascending(wanted, modality)
            of_query = queries[here // rows.shape[1]]
            found = np.einsum("nd,nd->n", vectors.astype(np.float32)[which], of_query)
            scores[here] = found if gone is None else np.where(gone[which], -np.inf, found)
        return scores.reshape(rows.shape)

    def vectors(self, rows: Ints, modality: Modality) -> npt.NDArray[np.float16]:
        """The subset's own vectors of some rows, ``(n, d)``.

        Raises :class:`StaleIndexError` if the subset no longer has one of these samples.
        """
        order = np.argsort(rows)
        out = np.empty((len(rows), self.summary.d), dtype=np.float16)
        out[order], gone = self._vectors.ascending(rows[order], modality)
        if gone is not None and gone.any():
            raise StaleIndexError.of(self._rows.place(int(rows[order][gone][0])))
        return out

    def places(self, rows: Sequence[int] | Ints) -> list[SamplePlace]:
        """Place of each row's sample. Raises ``IndexError`` for a row beyond the last one."""
        self._mapped.check()
        return [self._rows.place(int(row)) for row in rows]

    def runs_of(self, codec: str, modality: Modality) -> list[IndexRun]:
        """The index runs of a codec with vectors of the modality; the empty name stands for flat
        ones."""
        return [
            run for run in self.summary.runs if run.codec == codec and modality in run.modalities
        ]

    def cell_sizes(self, codec: str, modality: Modality) -> Ints:
        """Number of vectors in each cell of a codec, over all index runs, ``(cells,)``."""
        paths = [
            self.folder / run.folder / vectors_name(run.kind, modality)
            for run in self.runs_of(codec, modality)
        ]
        sizes: Ints = np.sum([ListsFile.open(path).sizes for path in paths], axis=0)
        return sizes

    def truth(self, codec: str, modality: Modality) -> Truth:
        """Exact neighbours of the codec's queries among the vectors that it encoded."""
        truths = [
            Truth.read(self.folder / run.folder / truth_name(modality)).renumbered(
                run.renumbering(int(first))
            )
            for first, run in zip(self.firsts, self.summary.runs, strict=False)
            if run.codec == codec and modality in run.modalities
        ]
        return Truth.best(truths)


def _best(scores: Floats, rows: Ints, k: int) -> tuple[Floats, Ints]:
    """The ``k`` best of each query, padded with -inf and -1; the lower row wins a tie."""
    scores = np.where(rows >= 0, scores, -np.inf).astype(np.float32)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    missing = k - scores.shape[1]
    if missing > 0:
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    return scores, rows
