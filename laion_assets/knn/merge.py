"""One index over many segments, which grows segment by segment.

The merged index is a handful of *index runs*. A new segment's files become a run as they are, by
hard links. Once there are `merge_every` runs of one level, their lists are written one after
another into one run of the next level. A segment's vectors are thus rewritten once for each power
of `merge_every` in the number of segments, and a query searches few runs.

The old vectors of a segment that was rebuilt with the same samples stay in their run and are
skipped, until that run is rewritten. A run with a sample that its segment no longer has is
rewritten without it at once: the sample may have been removed, and then nothing of it may stay.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laion_assets.clip.identity import ModelIdentity, SeveralModelsError, the_one
from laion_assets.files import can_link
from laion_assets.knn.files import (
    IndexMismatchError,
    IndexRun,
    IndexSummary,
    SearchParameters,
    SegmentRows,
    codec_dir,
    found_name,
    link_codec,
    link_file,
    map_index,
    new_index,
    read_sample_ids,
    truth_name,
    vectors_name,
    versions,
    write_index,
    write_sample_ids,
)
from laion_assets.knn.found import Found, read_found, search_run, write_found
from laion_assets.knn.judge import judge
from laion_assets.knn.lists import ListsFile, Renumbering, merge_lists
from laion_assets.knn.open_index import Ints, OpenIndex
from laion_assets.knn.options import IndexOptions
from laion_assets.knn.subset import AFTER_A_CHANGE, Modality, Subsets
from laion_assets.knn.truth import Truth
from laion_assets.layout import SegmentKey
from laion_assets.work import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentIndex:
    """A segment's own index, written by :func:`~laion_assets.knn.build.build_index`.

    ``version`` changes when the segment's index does, ``token`` whenever it is published.
    """

    key: SegmentKey
    version: str
    token: str = ""


IndexOf = Callable[[SegmentKey], Path]
"""A segment -> the folder of its own index."""


def merged_segments(index_dir: Path) -> dict[SegmentKey, SegmentRows]:
    """The segments whose rows an index has, with their versions and tokens as they were merged."""
    runs = IndexSummary.read(index_dir).runs
    return {entry.key: entry for run in runs for entry in run.segments if not entry.dropped}


@dataclass(frozen=True)
class _Source:
    """An index run in the folder where it is now, with its segments marked as they will be."""

    folder: Path
    run: IndexRun
    holds_lost: bool = False
    """Whether a dropped row is a sample that its segment no longer has."""


@dataclass(frozen=True)
class _Planned:
    """A run of the new index: linked if it is one source as it is, written otherwise."""

    level: int
    sources: tuple[_Source, ...]
    rewrite: bool

    @property
    def run(self) -> IndexRun:
        """The run without its segments and place."""
        like = self.sources[0].run
        return like.model_copy(
            update={"folder": "", "level": self.level, "segments": (), "recall": {}}
        )

    @property
    def group(self) -> tuple[str, str, Sequence[Modality], int]:
        """What runs that are merged have in common."""
        run = self.run
        return run.kind, run.codec, run.modalities, run.level


def merge_indices(
    segments: Sequence[SegmentIndex],
    index_of: IndexOf,
    out: Path,
    options: IndexOptions,
    subsets: Subsets,
    *,
    previous: Path | None = None,
    is_whole: Callable[[str], bool] = lambda _: True,
) -> IndexSummary:
    """Index all ``segments`` into ``out``, in whatever order they are given.

    Goes on in an ``out`` that holds runs of a killed call. Memory: one cell of the lists, or one
    flat run, at a time. Raises ``ValueError`` for no segments, and :class:`IndexMismatchError` if
    models or widths differ, or if files do not match their `index.json`.

    Args:
        segments: the segments' own indices.
        index_of: where these are; asked only for those that are not in ``previous``.
        out: the folder of the merged index.
        options: those of the merging and of the search parameters.
        subsets: where the segments' subsets are.
        previous: an index that this function wrote. Its runs are reused for segments of the same
            version, and are read only where they must be rewritten, so that the cost is that of the
            new segments. The search results do not depend on it; how the vectors are spread over
            runs does.
        is_whole: whether the files of ``previous`` whose names match a pattern are undamaged; asked
            for those that are copied. If not, all is made of the segments' own indices.
    """
    if not segments:
        raise ValueError("there is no index to merge: no segments were given")
    before = IndexSummary.read(previous) if previous else None
    fresh, carried, model, d = _sort_out(segments, index_of, previous, before)
    planned = _plan([*carried, *fresh], options)
    if previous and not all(map(is_whole, _copied(planned, previous, out))):
        logger.warning(f"{previous} is damaged: all segments are merged again")
        return merge_indices(segments, index_of, out, options, subsets)
    runs = []
    progress = Progress("merged index", "runs", len(planned), logger)
    for plan in planned:
        runs.append(_make(plan, out, d, before, subsets))
        progress.advance()
    for source in [*carried, *fresh]:
        codec = source.run.codec
        if codec and codec in {run.codec for run in runs}:
            link_codec(_codec_of(source), out, codec)
    kinds = sorted({run.kind for run in runs if run.n}) or sorted({run.kind for run in runs})
    summary = IndexSummary(
        kind="+".join(kinds),
        n=sum(run.n for run in runs),
        d=d,
        **model.model_dump(),
        runs=tuple(runs),
        versions=versions(),
    )
    for folder in (out / "runs").iterdir():
        if f"runs/{folder.name}" not in {run.folder for run in runs}:  # of a killed call
            shutil.rmtree(folder)
    summary.write(out)
    written = sum(plan.rewrite for plan in planned)
    logger.info(f"{len(runs)} index runs: {written} written, {len(runs) - written} linked")
    return judge(OpenIndex(out, subsets), options, subsets, before)


def _sort_out(
    segments: Sequence[SegmentIndex],
    index_of: IndexOf,
    previous: Path | None,
    before: IndexSummary | None,
) -> tuple[list[_Source], list[_Source], ModelIdentity, int]:
    """New segments' runs; the previous index's runs, with dropped segments marked; model; width."""
    wanted = {s.key: s for s in sorted(segments, key=lambda s: s.key)}
    marked = _marked(before, wanted) if before else []
    have = {entry.key for run in marked for entry in run.segments if not entry.dropped}
    new = {key: index_of(key) for key in wanted if key not in have}
    carried, fresh, widths = [], [], []
    models: list[tuple[object, ModelIdentity]] = []
    if before and previous:
        for was, run in zip(before.runs, marked, strict=True):
            if any(not entry.dropped for entry in run.segments):
                folder = previous / run.folder
                carried.append(_Source(folder, run, _holds_lost(folder, was, run, have, new)))
    for key, folder in new.items():
        summary = IndexSummary.read(folder)
        (run,) = summary.runs
        (rows,) = run.segments
        # An empty subset names neither its segment nor its vectors' width.
        rows = rows._replace(
            crawl=key.crawl,
            segment=key.segment,
            version=wanted[key].version,
            token=wanted[key].token,
        )
        models.append((key, summary.identity))
        if summary.n or len(wanted) == 1:
            widths.append(summary.d)
        fresh.append(_Source(folder, run.model_copy(update={"segments": (rows,)})))
    if before and carried:
        models += [(key, before.identity) for key in sorted(have)]
        widths.append(before.d)
    if not widths:
        widths.append(IndexSummary.read(next(iter(new.values()))).d)
    # The same weights may have had several names; the newest is the one to go by.
    try:
        model = the_one(models, "segments")
    except SeveralModelsError as error:
        raise IndexMismatchError(f"{error}: {AFTER_A_CHANGE}") from error
    assert model is not None, "there are segments"
    if len({*widths}) > 1:
        found = ", ".join(map(str, sorted({*widths})))
        raise IndexMismatchError(f"the indices differ in width: {found}")
    return fresh, carried, model, widths[0]


def _marked(before: IndexSummary, wanted: Mapping[SegmentKey, SegmentIndex]) -> list[IndexRun]:
    """The previous index's runs, with what is no longer wanted of them marked as dropped."""
    runs = []
    for run in before.runs:
        entries = []
        for entry in run.segments:
            now = None if entry.dropped else wanted.get(entry.key)
            if now is not None and now.version == entry.version:
                entries.append(entry._replace(token=now.token))
            else:
                entries.append(entry._replace(dropped=True))
        marked = run.model_copy(update={"segments": tuple(entries)})
        # A flat run that lost rows is judged again.
        runs.append(marked if marked.n == run.n else marked.model_copy(update={"recall": {}}))
    return runs


def _holds_lost(
    folder: Path,
    was: IndexRun,
    run: IndexRun,
    have: AbstractSet[SegmentKey],
    new: Mapping[SegmentKey, Path],
) -> bool:
    """Whether a dropped row is a sample that is no longer in its segment's index.

    Only what was dropped just now, or whose segment changed since, is looked at.
    """
    start, ids = 0, None
    for before, entry in zip(was.segments, run.segments, strict=True):
        held = slice(start, start + entry.rows)
        start = held.stop
        if not entry.dropped or not entry.rows or (before.dropped and entry.key in have):
            continue
        if entry.key in have or entry.key not in new:
            return True
        ids = read_sample_ids(folder, run) if ids is None else ids
        present = np.load(new[entry.key] / "ids.npy", mmap_mode="r", allow_pickle=False)
        if not np.isin(ids[held], present).all():
            return True
    return False


def _plan(sources: Sequence[_Source], options: IndexOptions) -> list[_Planned]:
    """Plan the runs of the new index: full levels are merged, worn-out runs rewritten alone."""
    planned = [
        _Planned(
            source.run.level,
            (source,),
            source.holds_lost
            or source.run.n < source.run.rows * (1 - options.max_dropped)
            or (options.max_dropped == 0 and source.run.n < source.run.rows),
        )
        for source in sources
    ]
    while True:
        by_group: dict[tuple[str, str, Sequence[Modality], int], list[_Planned]] = {}
        for plan in planned:
            by_group.setdefault(plan.group, []).append(plan)
        full = [group for group, plans in by_group.items() if len(plans) >= options.merge_every]
        if not full:
            return planned
        for group in full:
            plans = by_group[group]
            merged = tuple(source for plan in plans for source in plan.sources)
            ordered = tuple(sorted(merged, key=lambda source: _first(source.run)))
            planned = [plan for plan in planned if plan.group != group]
            planned.append(_Planned(plans[0].level + 1, ordered, rewrite=True))


def _copied(planned: Sequence[_Planned], previous: Path, out: Path) -> list[str]:
    """Patterns of the files of the previous index that get other bytes, or may."""
    out.mkdir(parents=True, exist_ok=True)
    if not can_link(previous / "index.json", out):
        return ["*"]
    sources = [source for plan in planned if plan.rewrite for source in plan.sources]
    return [f"{s.run.folder}/*" for s in sources if s.folder.is_relative_to(previous)]


def _first(run: IndexRun) -> SegmentKey:
    return min(segment.key for segment in run.segments if not segment.dropped)


def _make(
    plan: _Planned, out: Path, d: int, before: IndexSummary | None, subsets: Subsets
) -> IndexRun:
    """Write or link one index run's files below ``out/runs``."""
    if not plan.rewrite:
        (source,) = plan.sources
        run = source.run.model_copy(update={"folder": f"runs/{_name(source.run)}"})
        for name in run.file_names():
            link_file(source.folder / name, out / run.folder / name)
        for name in map(found_name, run.modalities):
            if (source.folder / name).exists():
                link_file(source.folder / name, out / run.folder / name)
        return run
    entries = [e for source in plan.sources for e in source.run.segments if not e.dropped]
    run = plan.run.model_copy(update={"segments": tuple(entries)})
    run = run.model_copy(update={"folder": f"runs/{_name(run)}"})
    folder = out / run.folder
    if all((folder / name).exists() for name in run.file_names()):
        return run
    folder.mkdir(parents=True, exist_ok=True)
    numbered = list(_numbered(plan.sources))
    for modality in run.modalities:
        if run.codec:
            _merge_coded(numbered, folder, run.kind, modality)
            parameters = before.search.get(run.codec, {}).get(modality) if before else None
            if parameters:
                _merge_found(plan, run, folder, modality, parameters, subsets)
        else:
            _merge_flat(numbered, folder, run.kind, modality, d)
    kept = [ids for source in plan.sources for ids in _kept_ids(source)]
    write_sample_ids(folder, np.concatenate(kept))
    return run


def _name(run: IndexRun) -> str:
    """Name a run's folder by what its files hold: its segments' versions, dropped ones included."""
    held = [run.kind, run.codec, [[e.crawl, e.segment, e.version] for e in run.segments]]
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()[:16]


def _numbered(sources: Sequence[_Source]) -> Iterator[tuple[_Source, Renumbering]]:
    first = 0
    for source in sources:
        yield source, source.run.renumbering(first, close=True)
        first += source.run.n


def _kept_ids(source: _Source) -> Iterator[Ints]:
    ids, start = read_sample_ids(source.folder, source.run), 0
    for segment in source.run.segments:
        if not segment.dropped:
            yield ids[start : start + segment.rows]
        start += segment.rows


def _merge_coded(
    numbered: Sequence[tuple[_Source, Renumbering]], folder: Path, kind: str, modality: Modality
) -> None:
    name = vectors_name(kind, modality)
    files = []
    for source, numbers in numbered:
        file = ListsFile.open(source.folder / name)
        _same_size(source, name, file.n)
        files.append((file, numbers))
    merge_lists(files, folder / name)
    truths = [
        Truth.read(source.folder / truth_name(modality)).renumbered(numbers)
        for source, numbers in numbered
    ]
    Truth.best(truths).write(folder / truth_name(modality))


def _merge_found(
    plan: _Planned,
    run: IndexRun,
    folder: Path,
    modality: Modality,
    parameters: Sequence[SearchParameters],
    subsets: Subsets,
) -> None:
    """Put what is found in the sources beside the run, so that it need not be searched as a whole.

    Segments of which it is not known are searched, unless they are the larger part of the run: then
    nothing is written, and the run is searched when it is judged.
    """
    name, each = found_name(modality), []
    known = [read_found(source.folder / name, parameters, source.run.n) for source in plan.sources]
    missing = [s for s, found in zip(plan.sources, known, strict=True) if found is None]
    alone = all((source.folder / "index.json").exists() for source in missing)
    if not alone or 2 * sum(source.run.n for source in missing) > run.n:
        return
    for source, found in zip(plan.sources, known, strict=True):
        if found is None:
            own = OpenIndex(source.folder, subsets)
            found = search_run(own, own.summary.runs[0], modality, parameters)
        each.append(found)
    best = [
        Found.best([found[number] for found in each], one.candidates(one.k))
        for number, one in enumerate(parameters)
    ]
    write_found(folder / name, parameters, run.n, best)


def _merge_flat(
    numbered: Sequence[tuple[_Source, Renumbering]],
    folder: Path,
    kind: str,
    modality: Modality,
    d: int,
) -> None:
    merged = new_index(kind, d)
    for source, _ in numbered:
        name = vectors_name(kind, modality)
        index = map_index(source.folder / name)
        _same_size(source, name, index.ntotal)
        start = 0
        for segment in source.run.segments:
            if segment.rows and not segment.dropped:
                vectors = index.index.reconstruct_n(start, segment.rows)
                rows = np.arange(merged.ntotal, merged.ntotal + segment.rows, dtype=np.int64)
                merged.add_with_ids(vectors, rows)
            start += segment.rows
    write_index(merged, folder / vectors_name(kind, modality))


def _same_size(source: _Source, name: str, size: int) -> None:
    if size != source.run.rows:
        raise IndexMismatchError(
            f"{source.folder / name} holds {size} vectors, "
            f"but its index.json says {source.run.rows}"
        )


def _codec_of(source: _Source) -> Path:
    """Folder of the codec: beside a segment's own files, or above a merged index's runs."""
    own = codec_dir(source.folder, source.run.codec)
    return own if own.exists() else codec_dir(source.folder.parent.parent, source.run.codec)
