"""Search parameters of an index, the recall that they reach, and how well its codec still fits.

Parameters in force are judged before others are looked for. Judging costs what is new: truth and
candidates of each index run are kept, and only a run without them is searched. Looking for
parameters searches the whole index, again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from laion_assets.knn.codec import unequal
from laion_assets.knn.files import (
    IndexRun,
    IndexSummary,
    Recall,
    SearchParameters,
    Tuning,
    found_name,
)
from laion_assets.knn.found import Found, read_found, search_run, write_found
from laion_assets.knn.open_index import OpenIndex
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.recall import depths_of, measure_runs, recall_of, tune
from laion_assets.knn.subset import MODALITIES, Modality, Subsets

logger = logging.getLogger(__name__)

_GROWTH: Final = 1.2
"""Growth of an index since its parameters were chosen that makes others worth looking for."""


def judge_alone(index: OpenIndex, options: IndexOptions, *, tuned: bool) -> IndexSummary:
    """Judge an index of one segment, and write its summary.

    Unless ``tuned``, its parameters are generous ones that suit a piece of a larger index.
    """
    search: dict[str, dict[str, tuple[SearchParameters, ...]]] = {}
    recall: dict[str, dict[str, Recall]] = {}
    for name, codec in index.codecs.items():
        search[name], recall[name] = {}, {}
        for modality in index.summary.runs[0].modalities:
            if tuned:
                search[name][modality], recall[name][modality] = tune(
                    index, name, modality, options
                )
            else:
                search[name][modality] = (_generous(codec.summary.cells, index.summary.n, options),)
    return _written(index, {"search": search, "recall": recall})


def judge(
    index: OpenIndex,
    options: IndexOptions,
    subsets: Subsets,
    previous: IndexSummary | None = None,
) -> IndexSummary:
    """Judge a merged index, and write its summary.

    The parameters of ``previous`` stay in force while they reach the recall that is asked for and
    the index has not grown by a fifth since they were chosen.
    """
    search: dict[str, dict[str, tuple[SearchParameters, ...]]] = {}
    tuned: dict[str, dict[str, Tuning]] = {}
    recall: dict[str, dict[str, Recall]] = {}
    for name in index.codecs:
        search[name], tuned[name], recall[name] = {}, {}, {}
        for modality in MODALITIES:
            if not (runs := index.runs_of(name, modality)):
                continue  # all images are without captions
            n = sum(run.n for run in runs)
            tuning, parameters = _in_force(previous, name, modality, n, options)
            if tuning:
                reached = _recall(index, name, modality, parameters)
                if min(reached.values(), default=1.0) < _asked(tuning, options):
                    tuning = None
            if tuning is None:
                parameters, reached = tune(index, name, modality, options)
                lowest = min(reached.values(), default=1.0)
                tuning = Tuning(
                    n=n, target=options.tune_recall, reached=lowest, rerank=options.rerank
                )
                logger.info(f"{modality} search parameters chosen: {parameters}")
                reached = _recall(index, name, modality, parameters)
            search[name][modality], tuned[name][modality] = parameters, tuning
            recall[name][modality] = reached
    judged = tuple(_flat_judged(index, run, subsets, options) for run in index.summary.runs)
    return _written(index, {"search": search, "tuned": tuned, "recall": recall, "runs": judged})


def _in_force(
    previous: IndexSummary | None, codec: str, modality: Modality, n: int, options: IndexOptions
) -> tuple[Tuning | None, tuple[SearchParameters, ...]]:
    """How the previous index's parameters were chosen, and they; None if others must be."""
    tuning = previous.tuned.get(codec, {}).get(modality) if previous else None
    if previous is None or tuning is None:
        return None, ()
    same = (tuning.target, tuning.rerank) == (options.tune_recall, options.rerank)
    if not same or n >= _GROWTH * tuning.n:
        return None, ()
    return tuning, previous.search[codec][modality]


def _asked(tuning: Tuning, options: IndexOptions) -> float:
    """The recall below which other parameters are looked for.

    Where the best there were did not reach the target, looking for them at each merge is vain.
    """
    return options.tune_recall if tuning.reached >= options.tune_recall else options.min_recall


def _recall(
    index: OpenIndex, codec: str, modality: Modality, parameters: Sequence[SearchParameters]
) -> Recall:
    """Recall of all index runs of a codec, by what is known of each."""
    runs = index.runs_of(codec, modality)
    found = [_found(index, run, modality, parameters) for run in runs]
    truth, n = index.truth(codec, modality), sum(run.n for run in runs)
    recall: dict[str, float] = {}
    for number, one in enumerate(parameters):
        whole = Found.best([by_run[number] for by_run in found], one.candidates(one.k))
        recall |= recall_of(truth, whole.exact, one, depths_of(one), n)
    return recall


def _found(
    index: OpenIndex, run: IndexRun, modality: Modality, parameters: Sequence[SearchParameters]
) -> list[Found]:
    """What is found in one run: known, or searched for and kept in its folder."""
    path = index.folder / run.folder / found_name(modality)
    known = read_found(path, parameters, run.n)
    if known is not None:
        return known
    found = search_run(index, run, modality, parameters)
    write_found(path, parameters, run.n, found)
    return found


def _flat_judged(
    index: OpenIndex, run: IndexRun, subsets: Subsets, options: IndexOptions
) -> IndexRun:
    """A flat run with its recall; another run as it is."""
    if run.codec or run.recall or not run.n:
        return run
    recall = {
        modality: measure_runs(index, [run], subsets, modality, options)
        for modality in run.modalities
    }
    return run.model_copy(update={"recall": recall})


def _written(index: OpenIndex, judged: dict[str, object]) -> IndexSummary:
    """Write the index's summary with what was judged, and with drift and imbalance."""
    drift: dict[str, dict[str, float]] = {}
    imbalance: dict[str, dict[str, float]] = {}
    for name, codec in index.codecs.items():
        drift[name], imbalance[name] = {}, {}
        for at, modality in enumerate(MODALITIES):
            segments = [
                (segment.rows, segment.residual)
                for run in index.runs_of(name, modality)
                for segment in run.segments
                if segment.rows and not segment.dropped
            ]
            if not segments:
                continue
            rows = sum(rows for rows, _ in segments)
            far = sum(rows * residual[at] for rows, residual in segments) / rows
            drift[name][modality] = round(far / codec.summary.residual[modality], 4)
            sizes = index.cell_sizes(name, modality)
            imbalance[name][modality] = round(unequal(sizes) / codec.summary.imbalance[modality], 4)
    summary = index.summary.model_copy(update={**judged, "drift": drift, "imbalance": imbalance})
    summary.write(index.folder)
    return summary


def _generous(cells: int, rows: int, options: IndexOptions) -> SearchParameters:
    """Parameters that look at some 50,000 vectors, which is fast for one segment."""
    nprobe = min(cells, 1_024, max(64, cells * 50_000 // max(1, rows)))
    return SearchParameters(nprobe=nprobe, rerank=800 if options.rerank else 0, k=100)
