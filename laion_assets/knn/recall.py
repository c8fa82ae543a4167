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
from laion_assets.knn.truth import DEPTH, Truth

AT: Final = (1, 10, 100)
"""Neighbours that recall is measured at."""
TIE: Final = 1e-5
"""Similarities closer than this are equal: float32 sums differ by the order of summation."""

_RERANKS: Final = (50, 100, 200, 400, 800)
_ENOUGH: Final = 0.0005
"""Twice as many cells must find this much more, or more are of no use."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Recall = Mapping[str, float]


def recall_at(truth: Truth, scores: Floats, rows: Ints, there: int) -> Recall:
    """``{"1": …, "10": …, "100": …}``: the share of the true neighbours found, 0..1.

    ``scores`` ``(q, ≥ 100)`` are the *true* similarities of the rows found, best first; ``there``
    is how many vectors there are. A neighbour is as good as another of the same similarity, so
    that duplicates in the data do not count as misses. 1.0 where there are no vectors.
    """
    found = {}
    for k in AT:
        depth = min(k, there, DEPTH)
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
            _, rows = index.nearest(queries, max(AT), modality, only=codec)
            scores = index.exact(queries, rows, modality)
            found.append(recall_at(truth, scores, rows, there))
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
                vectors = [
                    SubsetPart(folder, number).vectors(modality) for number, _ in segment.parts
                ]
                found = Truth.of(queries, vectors)
                shifted = np.where(found.rows >= 0, found.rows + start, -1)
                truths.append(Truth(found.scores, shifted, found.floor))
            start += segment.rows
    return queries, Truth.best(truths)


def tune(
    index: OpenIndex, codec: str, modality: Modality, options: IndexOptions
) -> tuple[SearchParameters, Recall]:
    """The cheapest search parameters that reach `tune_recall` at 1, 10 and 100 neighbours, or those
    that come nearest, and the recall of the codec's queries that they have."""
    queries, truth = index.codecs[codec].queries(modality), index.truth(codec, modality)
    there = sum(run.n for run in index.summary.runs if run.codec == codec)
    cells = index.codecs[codec].summary.cells
    most = max(_RERANKS)
    best: tuple[float, SearchParameters, Recall] | None = None
    nearest: tuple[float, SearchParameters, Recall] | None = None
    nprobe, before = max(1, cells // 1024), -1.0
    while nprobe <= cells:
        coded, rows = index.candidates(queries, most, modality, codec, nprobe)
        exact = index.exact(queries, rows, modality)
        reached = 0.0
        for rerank in _RERANKS if options.rerank else (0,):
            parameters = SearchParameters(nprobe=nprobe, rerank=rerank)
            found = {}
            for k in AT:
                some = parameters.candidates(k)
                order = np.argsort(-(exact if rerank else coded)[:, :some], axis=1, kind="stable")
                order = order[:, : max(AT)]
                at = recall_at(
                    truth,
                    np.take_along_axis(exact, order, 1),
                    np.take_along_axis(rows, order, 1),
                    there,
                )
                if str(k) in at:
                    found[str(k)] = at[str(k)]
            lowest = min(found.values(), default=1.0)
            reached = max(reached, lowest)
            cost = _cost(nprobe, there * nprobe / cells, rerank)
            if lowest >= options.tune_recall and (best is None or cost < best[0]):
                best = (cost, parameters, found)
            if nearest is None or lowest > nearest[0]:
                nearest = (lowest, parameters, found)
        if best is not None and _cost(2 * nprobe, 2 * there * nprobe / cells, 0) > best[0]:
            break
        if best is None and nprobe >= 16 and reached - before < _ENOUGH:
            break
        before = reached
        nprobe *= 2
    chosen = best or nearest
    assert chosen is not None
    return chosen[1], chosen[2]


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
