"""Judge an index: does it hold what it should, and how much of the exact answer does it find?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from laion_assets.knn.files import (
    IndexRun,
    IndexSummary,
    Recall,
    SearchParameters,
    map_index,
    vectors_name,
)
from laion_assets.knn.lists import ListsFile
from laion_assets.knn.open_index import OpenIndex
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.sampling import sample_queries
from laion_assets.knn.subset import MODALITIES, Modality, SubsetPart, Subsets, subset_folder
from laion_assets.knn.truth import Truth
from laion_assets.tables import rows_in

AT: Final = (1, 10, 100)
"""Numbers of neighbours at which recall is measured."""
TIE: Final = 1e-5
"""Similarities closer than this are equal: float32 sums differ by the order of summation."""

_WANTED: Final[Mapping[int, Sequence[int]]] = {10: (1, 10), 100: (100,)}
"""Number of results of a search -> depths that it is judged at.

Deep searches are tuned apart, or looking for ten would cost as much as looking for a hundred.
"""
_RERANKS: Final = (50, 100, 200, 400, 800)
_WIDEST: Final = 512
"""Tuning starts at one cell in this many."""
_TRIED: Final = 32
"""Number of cells up to which tuning always goes on."""
_ENOUGH: Final = 0.0005
"""Least gain in recall from twice as many cells that makes still more worth trying."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def recall_at(
    truth: Truth, scores: Floats, rows: Ints, n: int, depths: Sequence[int] = AT
) -> Recall:
    """Share of the true neighbours found at each depth: ``{"1": …, "10": …, "100": …}``, 0..1.

    A neighbour is as good as another of the same similarity, so that duplicates in the data do not
    count as misses. A depth whose neighbours are no longer known is left out.

    Args:
        truth: the exact neighbours.
        scores: *true* similarities of the rows found, best first, ``(q, deepest)``.
        rows: their numbers; -1 where there is none.
        n: number of vectors in the index; without any the recall is 1.0.
        depths: numbers of neighbours.
    """

    def hits(certain: npt.NDArray[np.bool_], least: Floats, depth: int) -> int:
        best, best_rows = scores[certain, :depth], rows[certain, :depth]
        good = (best >= least) & (best_rows >= 0)
        # A row counts once even if an index held it twice.
        ordered = np.sort(np.where(good, best_rows, -1), axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        return int(good.sum() - repeated.sum())

    return _by_depth(truth, n, depths, hits)


def _by_depth(
    truth: Truth,
    n: int,
    depths: Sequence[int],
    hits: Callable[[npt.NDArray[np.bool_], Floats, int], int],
) -> Recall:
    """Recall at each depth.

    ``hits(certain, least, depth)`` counts what the ``certain`` queries, ``(q,)``, found among their
    ``depth`` true neighbours: what has the similarity ``least``, ``(certain, 1)``, or more.
    """
    found = {}
    for k in depths:
        depth = min(k, n)
        if not depth:
            found[str(k)] = 1.0
            continue
        threshold, certain = truth.kth(depth)
        if certain.any():  # else so much was taken out that the neighbours are not known
            least = threshold[certain, None] - TIE
            found[str(k)] = hits(certain, least, depth) / (int(certain.sum()) * depth)
    return found


def measure_recall(index_dir: Path, subsets: Subsets, options: IndexOptions) -> dict[str, Recall]:
    """Recall of each modality's index, searched with its recorded parameters.

    The queries are sampled from the indexed subsets, and their neighbours are found by brute force
    over all of them. For an index of several codecs the lowest recall counts.
    """
    index = OpenIndex(index_dir, subsets)
    codecs = sorted({run.codec for run in index.summary.runs if run.n})
    return {
        modality: lowest(
            [
                measure_runs(index, runs, subsets, modality, options)
                for codec in codecs
                if (runs := index.runs_of(codec, modality))
            ]
        )
        for modality in MODALITIES
    }


def measure_runs(
    index: OpenIndex,
    runs: Sequence[IndexRun],
    subsets: Subsets,
    modality: Modality,
    options: IndexOptions,
) -> Recall:
    """Recall of a codec's index runs, or of flat ones, as :func:`measure_recall` measures it."""
    queries, truth = _brute_force(index, runs, subsets, modality, options)
    n = sum(run.n for run in runs)
    recall: dict[str, float] = {}
    for most, depths in _WANTED.items():
        _, rows = index.nearest(queries, most, modality, runs=runs)
        scores = index.exact(queries, rows, modality)
        recall |= recall_at(truth, scores, rows, n, depths)
    return recall


def recorded_recall(summary: IndexSummary) -> dict[str, Recall]:
    """Recall of a merged index by modality, as it was measured when it was made.

    For an index of several codecs, or with flat runs, the lowest counts.
    """
    return {
        modality: lowest(
            [recall[modality] for recall in summary.recall.values() if modality in recall]
            + [run.recall[modality] for run in summary.runs if modality in run.recall]
        )
        for modality in MODALITIES
    }


def lowest(found: Sequence[Recall]) -> Recall:
    """The lowest of several recalls at each depth."""
    names = {name for recall in found for name in recall}
    return {
        name: min(recall[name] for recall in found if name in recall)
        for name in sorted(names, key=int)
    } or {str(k): 1.0 for k in AT}


def _brute_force(
    index: OpenIndex,
    runs: Sequence[IndexRun],
    subsets: Subsets,
    modality: Modality,
    options: IndexOptions,
) -> tuple[Floats, Truth]:
    """Queries sampled from the runs' segments, and their neighbours by the index's row numbers."""
    parts: list[SubsetPart] = []
    truths = []
    for run in runs:
        for segment in run.segments:
            if not segment.dropped:
                folder = subset_folder(subsets, segment.crawl, segment.segment)
                parts += [SubsetPart(folder, part.number) for part in segment.parts]
    n = sum(part.rows() for part in parts)
    queries = sample_queries(parts, modality, options.recall_queries, n, options.recall_seed)
    for first, run in zip(index.firsts, index.summary.runs, strict=False):
        if run not in runs:
            continue
        start = int(first)
        for segment in run.segments:
            if not segment.dropped:
                folder = subset_folder(subsets, segment.crawl, segment.segment)
                its_parts = (SubsetPart(folder, part.number) for part in segment.parts)
                found = Truth.of(queries, (part.vectors(modality) for part in its_parts))
                shifted = np.where(found.rows >= 0, found.rows + start, -1)
                truths.append(Truth(found.scores, shifted, found.floor))
            start += segment.rows
    return queries, Truth.best(truths)


def tune(
    index: OpenIndex, codec: str, modality: Modality, options: IndexOptions
) -> tuple[tuple[SearchParameters, ...], Recall]:
    """Choose the cheapest search parameters that reach `tune_recall`, or come nearest to it.

    There is one set for up to 10 results and one for up to 100. Returns them with the recall that
    they have on the codec's queries.
    """
    queries, truth = index.codecs[codec].queries(modality), index.truth(codec, modality)
    runs, cells = index.runs_of(codec, modality), index.codecs[codec].summary.cells
    n = sum(run.n for run in runs)
    best: dict[int, tuple[float, SearchParameters, Recall]] = {}
    nearest: dict[int, tuple[float, SearchParameters, Recall]] = {}
    nprobe, before = max(1, cells // _WIDEST), -1.0
    while True:
        _, rows = index.candidates(queries, max(_RERANKS), modality, runs, nprobe)
        exact = index.exact(queries, rows, modality)
        for most, depths in _WANTED.items():
            for rerank in _RERANKS if options.rerank else (0,):
                parameters = SearchParameters(nprobe=nprobe, rerank=rerank, k=most)
                found = recall_of(truth, exact, parameters, depths, n)
                least = min(found.values(), default=1.0)
                cost = _cost(nprobe, n * nprobe / cells, parameters.candidates(most))
                if least >= options.tune_recall and (most not in best or cost < best[most][0]):
                    best[most] = (cost, parameters, found)
                if most not in nearest or least > nearest[most][0]:
                    nearest[most] = (least, parameters, found)
        nprobe *= 2
        if nprobe > cells:
            break
        if len(best) == len(_WANTED):
            # Searching twice the cells costs more than any number of candidates.
            cheapest = _cost(nprobe, n * nprobe / cells, 0)
            if all(cheapest > cost for cost, _, _ in best.values()):
                break
        # Do more cells help those that are not reached yet?
        missing = [nearest[most][0] for most in _WANTED if most not in best]
        if nprobe > _TRIED and missing and min(missing) - before < _ENOUGH:
            break
        before = min(missing, default=0.0)
    chosen = {most: best.get(most, nearest[most]) for most in _WANTED}
    recall = {name: share for _, _, found in chosen.values() for name, share in found.items()}
    return tuple(parameters for _, parameters, _ in chosen.values()), recall


def depths_of(parameters: SearchParameters) -> Sequence[int]:
    """Numbers of neighbours that these parameters of :func:`tune` are judged at."""
    return _WANTED[parameters.k]


def recall_of(
    truth: Truth, exact: Floats, parameters: SearchParameters, depths: Sequence[int], n: int
) -> Recall:
    """Recall at some depths when the candidates are those with the ``exact`` scores, ``(q, r)``.

    They stand in the order of their codes. What is scored exactly is found if it is among the true
    neighbours.
    """

    def hits(certain: npt.NDArray[np.bool_], least: Floats, depth: int) -> int:
        scores = exact[certain, : parameters.candidates(depth)]
        return int(np.minimum((scores >= least).sum(axis=1), depth).sum())

    return _by_depth(truth, n, depths, hits)


def _cost(nprobe: int, scanned: float, rerank: int) -> float:
    """Rough microseconds per query: cells found in the graph, codes scanned, vectors scored."""
    return 2.0 * nprobe + 0.015 * scanned + 1.3 * rerank


def size_problem(index_dir: Path, rows: int) -> str | None:
    """Say what is wrong if indices and ids do not hold exactly ``rows`` rows; None if they do."""
    summary = IndexSummary.read(index_dir)
    wrong = [] if summary.n == rows else [f"index.json holds {summary.n}"]
    for name, size, expected in _sizes(index_dir, summary):
        if size != expected:
            wrong.append(f"{name} holds {size}")
    if (index_dir / "ids.parquet").exists():
        size = rows_in(index_dir / "ids.parquet")
        if size != rows:
            wrong.append(f"ids.parquet holds {size}")
    return f"{', '.join(wrong)}; the subset has {rows} rows" if wrong else None


def _sizes(index_dir: Path, summary: IndexSummary) -> list[tuple[str, int, int]]:
    """Name, number of rows, and expected number of each file of vectors or ids."""
    sizes = []
    for run in summary.runs:
        folder = index_dir / run.folder
        for modality in run.modalities:
            path = folder / vectors_name(run.kind, modality)
            size = ListsFile.open(path).n if run.codec else int(map_index(path).ntotal)
            sizes.append((str(path.relative_to(index_dir)), size, run.rows))
        ids: npt.NDArray[Any] = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
        sizes.append((str((folder / "ids.npy").relative_to(index_dir)), len(ids), run.rows))
    return sizes
