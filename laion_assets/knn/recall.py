"""Does an index hold what it should, and find what brute force finds?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from laion_assets.knn.codec import sample_queries
from laion_assets.knn.files import IndexSummary, Run, SearchParameters, map_index, vectors_name
from laion_assets.knn.lists import ListsFile
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.runs import OpenIndex, SubsetOf
from laion_assets.knn.subset import MODALITIES, Modality, SubsetPart
from laion_assets.knn.truth import Truth

AT: Final = (1, 10, 100)
"""Neighbours that recall is measured at."""
TIE: Final = 1e-5
"""Similarities closer than this are equal: float32 sums differ by the order of summation."""

_WANTED: Final[Mapping[int, Sequence[int]]] = {10: (1, 10), 100: (100,)}
"""Results that are asked for, and the depths that are judged by them: searching deeper is tuned
apart, or looking for ten would cost what looking for a hundred does."""
_RERANKS: Final = (50, 100, 200, 400, 800)
_WIDEST: Final = 512
"""Tuning starts at one cell in so many."""
_TRIED: Final = 32
"""Cells that are always tried."""
_ENOUGH: Final = 0.0005
"""Twice as many cells must find this much more, or more are of no use."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Recall = Mapping[str, float]


def recall_at(
    truth: Truth, scores: Floats, rows: Ints, there: int, depths: Sequence[int] = AT
) -> Recall:
    """``{"1": …, "10": …, "100": …}``: the share of the true neighbours found, 0..1.

    ``scores`` ``(q, the deepest)`` are the *true* similarities of the rows found, best first;
    ``there`` is how many vectors there are. A neighbour is as good as another of the same
    similarity, so that duplicates in the data do not count as misses. 1.0 without vectors.
    """
    found = {}
    for k in depths:
        depth = min(k, there)
        if not depth:
            found[str(k)] = 1.0
            continue
        threshold, certain = truth.kth(depth)
        if not certain.any():  # so much was taken out that the neighbours are not known
            continue
        best, best_rows = scores[certain, :depth], rows[certain, :depth]
        good = (best >= threshold[certain, None] - TIE) & (best_rows >= 0)
        # A row counts once even if an index held it twice.
        ordered = np.sort(np.where(good, best_rows, -1), axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        found[str(k)] = float((good.sum() - repeated.sum()) / good.size)
    return found


def measure_recall(
    index_dir: Path, subset_of: SubsetOf, options: IndexOptions, *, own_queries: bool
) -> dict[str, Recall]:
    """Recall of each modality's index, as it is searched by default.

    ``own_queries``: queries sampled from the indexed subsets and their neighbours by brute force
    over all of them; else the codec's queries, whose neighbours the runs know. Flat runs always
    have their own. Where an index is of several codecs, the lowest recall counts.
    """
    index = OpenIndex(index_dir, subset_of)
    measured: dict[str, Recall] = {}
    for modality in MODALITIES:
        found: list[Recall] = []
        for codec in index.groups():
            runs = [run for run in index.summary.runs if run.codec == codec]
            if codec and not own_queries:
                queries, truth = index.codecs[codec].queries(modality), index.truth(codec, modality)
            else:
                queries, truth = _brute_force(index, runs, subset_of, modality, options)
            there = sum(run.n for run in runs)
            for most, depths in _WANTED.items():
                _, rows = index.nearest(queries, most, modality, only=codec)
                scores = index.exact(queries, rows, modality)
                found.append(recall_at(truth, scores, rows, there, depths))
        measured[modality] = _lowest(found)
    return measured


def _lowest(found: Sequence[Recall]) -> Recall:
    names = {name for recall in found for name in recall}
    return {
        name: min(recall[name] for recall in found if name in recall)
        for name in sorted(names, key=int)
    } or {str(k): 1.0 for k in AT}


def _brute_force(
    index: OpenIndex,
    runs: Sequence[Run],
    subset_of: SubsetOf,
    modality: Modality,
    options: IndexOptions,
) -> tuple[Floats, Truth]:
    """Queries sampled from the runs' segments, and their neighbours, numbered as in the index."""
    parts: list[SubsetPart] = []
    truths = []
    for run in runs:
        for segment in run.segments:
            if not segment.dropped:
                folder = subset_of(segment.crawl, segment.segment)
                parts += [SubsetPart(folder, number) for number, _ in segment.parts]
    there = sum(part.rows() for part in parts)
    queries = sample_queries(parts, modality, options.recall_queries, there, options.recall_seed)
    for first, run in zip(index.firsts, index.summary.runs, strict=False):
        if run not in runs:
            continue
        start = int(first)
        for segment in run.segments:
            if not segment.dropped:
                folder = subset_of(segment.crawl, segment.segment)
                vectors = (
                    SubsetPart(folder, number).vectors(modality) for number, _ in segment.parts
                )
                found = Truth.of(queries, vectors)
                shifted = np.where(found.rows >= 0, found.rows + start, -1)
                truths.append(Truth(found.scores, shifted, found.floor))
            start += segment.rows
    return queries, Truth.best(truths)


def tune(
    index: OpenIndex, codec: str, modality: Modality, options: IndexOptions
) -> tuple[tuple[SearchParameters, ...], Recall]:
    """The cheapest search parameters that reach `tune_recall` for up to 10 and up to 100 results,
    or those that come nearest, and the recall of the codec's queries that they have."""
    queries, truth = index.codecs[codec].queries(modality), index.truth(codec, modality)
    there = sum(run.n for run in index.summary.runs if run.codec == codec)
    cells = index.codecs[codec].summary.cells
    best: dict[int, tuple[float, SearchParameters, Recall]] = {}
    nearest: dict[int, tuple[float, SearchParameters, Recall]] = {}
    nprobe, before = max(1, cells // _WIDEST), -1.0
    while True:
        _, rows = index.candidates(queries, max(_RERANKS), modality, codec, nprobe)
        exact = index.exact(queries, rows, modality)
        for most, depths in _WANTED.items():
            for rerank in _RERANKS if options.rerank else (0,):
                parameters = SearchParameters(nprobe=nprobe, rerank=rerank, k=most)
                found = _found(truth, exact, parameters, depths, there)
                lowest = min(found.values(), default=1.0)
                cost = _cost(nprobe, there * nprobe / cells, parameters.candidates(most))
                if lowest >= options.tune_recall and (most not in best or cost < best[most][0]):
                    best[most] = (cost, parameters, found)
                if most not in nearest or lowest > nearest[most][0]:
                    nearest[most] = (lowest, parameters, found)
        nprobe *= 2
        if nprobe > cells:
            break
        if len(best) == len(_WANTED):
            # Looking into twice the cells costs more than any number of candidates.
            least = _cost(nprobe, there * nprobe / cells, 0)
            if all(least > cost for cost, _, _ in best.values()):
                break
        # Those not yet reached: does it help them to look into more cells?
        missing = [nearest[most][0] for most in _WANTED if most not in best]
        if nprobe > _TRIED and missing and min(missing) - before < _ENOUGH:
            break
        before = min(missing, default=0.0)
    chosen = {most: best.get(most, nearest[most]) for most in _WANTED}
    recall = {name: share for _, _, found in chosen.values() for name, share in found.items()}
    return tuple(parameters for _, parameters, _ in chosen.values()), recall


def _found(
    truth: Truth, exact: Floats, parameters: SearchParameters, depths: Sequence[int], there: int
) -> Recall:
    """Recall at some depths when the candidates are those with these exact scores, in the order
    of their codes. What is scored exactly is found if it is among the true neighbours."""
    found = {}
    for k in depths:
        depth = min(k, there)
        if not depth:
            found[str(k)] = 1.0
            continue
        threshold, certain = truth.kth(depth)
        if certain.any():
            scores = exact[certain, : parameters.candidates(depth)]
            hits = (scores >= threshold[certain, None] - TIE).sum(axis=1)
            found[str(k)] = float(np.minimum(hits, depth).sum() / (certain.sum() * depth))
    return found


def _cost(nprobe: int, scanned: float, rerank: int) -> float:
    """Microseconds of a query, about: cells found in the graph, codes scanned, vectors scored."""
    return 2.0 * nprobe + 0.015 * scanned + 1.3 * rerank


def size_problem(index_dir: Path, rows: int) -> str | None:
    """What is wrong if the indices and ids do not hold exactly ``rows`` rows, else None."""
    summary = IndexSummary.read(index_dir)
    wrong = [] if summary.n == rows else [f"index.json holds {summary.n}"]
    for name, size, said in _sizes(index_dir, summary):
        if size != said:
            wrong.append(f"{name} holds {size}")
    if (index_dir / "ids.parquet").exists():
        size = int(pq.read_metadata(index_dir / "ids.parquet").num_rows)
        if size != rows:
            wrong.append(f"ids.parquet holds {size}")
    return f"{', '.join(wrong)}; the subset has {rows} rows" if wrong else None


def _sizes(index_dir: Path, summary: IndexSummary) -> list[tuple[str, int, int]]:
    told = []
    for run in summary.runs:
        folder = index_dir / run.folder
        for modality in MODALITIES:
            path = folder / vectors_name(run.kind, modality)
            size = ListsFile.open(path).n if run.codec else int(map_index(path).ntotal)
            told.append((str(path.relative_to(index_dir)), size, run.rows))
        ids: npt.NDArray[Any] = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
        told.append((str((folder / "ids.npy").relative_to(index_dir)), len(ids), run.rows))
    return told
