"""Taking samples out of everything that has been made: what a change of the lists concerns, and
the runs that make it again.

The runs are Dagster's own, on the deployment's instance, one process for all; what they make, they
make as always. What does not belong here: how a stage leaves out what is listed.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import dagster as dg

from laion_assets.defs.assets.dataset_report import SAMPLES, SHOWS_SAMPLES
from laion_assets.defs.assets.lists import concerned, observation
from laion_assets.defs.jobs import AGGREGATES, LISTS, SEGMENT_ASSETS
from laion_assets.defs.partitions import crawls, partition_key
from laion_assets.defs.removal.survey import Survey, further_subsets, holds_listed, rows_of, survey
from laion_assets.generation.shown_samples import shows_listed
from laion_assets.lake import Lake, LocalLake
from laion_assets.removals.active import FOLDERS, read_lists
from laion_assets.removals.ledger import read_ledger
from laion_assets.segments import SegmentKey

logger = logging.getLogger(__name__)

_TO_SCORES: Final = SEGMENT_ASSETS[1 : SEGMENT_ASSETS.index("scored_pairs") + 1]
"""What every subset is made of; the WAT manifest holds no samples."""


class RemovalError(RuntimeError):
    """A partition could not be made again; the message says which."""


def observe(lake: Lake, instance: dg.DagsterInstance) -> Survey:
    """Look where the lists' entries are, and tell Dagster which partitions they concern."""
    lists = read_lists(lake.current(*FOLDERS))
    for name in LISTS:
        if not instance.fetch_observations(dg.AssetKey(name), limit=1).records:
            instance.report_runless_asset_event(observation(name, lists.digests[name]))
    found = survey(lake, lists)
    for event in concerned(read_lists(lake.current(*FOLDERS)), found.keys):
        instance.report_runless_asset_event(event)
    return found


def apply(
    lake: LocalLake,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    found: Survey,
) -> None:
    """Make again what :func:`observe` found, what was made of it, and the aggregates.

    A partition's assets that nobody has made are not made. Goes on where a killed call stopped.
    Raises :class:`RemovalError`.
    """
    _refuse_unknown_subsets(lake, definitions, found)
    known = set(instance.get_dynamic_partitions(crawls.name or ""))
    graph = definitions.resolve_asset_graph().get_all_asset_keys()
    further = [name for name in further_subsets(lake) if dg.AssetKey(name) in graph]
    keys = sorted({*found.keys, *_unfinished(lake, further)})
    unknown = sorted({key.crawl for key in keys} - known)
    if unknown:
        raise RemovalError(
            f"Dagster's instance has no crawl {', '.join(unknown)}: is DAGSTER_HOME the instance "
            "that made this lake?"
        )
    for key in keys:
        holding = list(found.samples.get(key, ()))
        _make_again(lake, instance, definitions, key, holding)
    withdraw_samples(lake)
    drop_abandoned(lake)
    behind = _aggregates_behind(lake)
    if behind:
        _run(instance, definitions, None, behind)


def _refuse_unknown_subsets(lake: Lake, definitions: dg.Definitions, found: Survey) -> None:
    known = definitions.resolve_asset_graph().get_all_asset_keys()
    holding = found.total()
    unknown = [
        name for name in further_subsets(lake) if holding[name] and dg.AssetKey(name) not in known
    ]
    if unknown:
        raise RemovalError(
            f"{', '.join(unknown)} in {lake} holds listed samples, but the settings have no "
            "such subset: add it to them again, or delete its folder"
        )


def _made(lake: Lake, key: SegmentKey) -> list[str]:
    """The segment's assets that there are, in the order of the data's way."""
    *before, last = SEGMENT_ASSETS
    assets = [*before, *further_subsets(lake), last]
    return [asset for asset in assets if lake.folder(asset, key).exists()]


def _make_again(
    lake: Lake,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    key: SegmentKey,
    holding: Sequence[str],
) -> None:
    """Runs until no asset of the segment is stale."""
    known = definitions.resolve_asset_graph().get_all_asset_keys()
    # A subset that the settings have no more holds nothing listed here, or it was refused.
    made = [asset for asset in _made(lake, key) if dg.AssetKey(asset) in known]
    for _ in made:
        stale = {*_stale(instance, definitions, made, key), *holding}
        selected = [asset for asset in made if asset in stale]
        if not selected:
            return
        _run(instance, definitions, key, selected)
        holding = []
    raise RemovalError(f"{key}: what is made again stays stale")


def _run(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    key: SegmentKey | None,
    assets: Sequence[str],
) -> None:
    what = str(key) if key else "all segments"
    logger.info(f"{what}: making {', '.join(assets)} again")
    result = definitions.resolve_job_def("segment" if key else "aggregates").execute_in_process(
        instance=instance,
        partition_key=partition_key(key) if key else None,
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "WARNING"}}}},
    )
    if not result.success:
        raise RemovalError(
            f"the run {result.run_id} for {what} did not succeed: see it in Dagster's UI; the "
            "same command goes on where this one stopped"
        )


def _stale(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    assets: Sequence[str],
    key: SegmentKey,
) -> list[str]:
    """By Dagster's own reckoning. What it has never seen made is not stale."""
    from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
    from dagster._core.loader import LoadingContextForTest

    graph = definitions.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    partition = str(partition_key(key))
    return [
        asset
        for asset in assets
        if resolver.get_status(dg.AssetKey(asset), partition) == StaleStatus.STALE
    ]


def _unfinished(lake: LocalLake, further: Sequence[str]) -> Iterator[SegmentKey]:
    """Segments that something was taken out of and whose later assets are older than that."""
    for key in _in_ledger(lake):
        made = _made(lake, key)
        ways = [SEGMENT_ASSETS[1:], *([*_TO_SCORES, subset] for subset in further)]
        for way in ways:
            started = [lake.manifest(asset, key).started for asset in way if asset in made]
            if started != sorted(started):
                yield key
                break


def _aggregates_behind(lake: LocalLake) -> list[str]:
    """The aggregates that are older than a segment which something was taken out of.

    Dagster does not reckon staleness over many partitions.
    """
    newest = max(
        (
            lake.manifest(asset, key).started
            for key in _in_ledger(lake)
            for asset in _made(lake, key)[1:]
        ),
        default="",
    )
    made = [asset for asset in AGGREGATES if lake.folder(asset).exists()]
    return [
        asset
        for asset in made
        if lake.manifest(asset).started <= newest or _shows_withdrawn(lake, asset)
    ]


def _shows_withdrawn(lake: Lake, asset: str) -> bool:
    """Whether it is the report, and shows samples that were taken away since."""
    return bool(lake.manifest(asset).metadata.get(SHOWS_SAMPLES)) and not lake.has(SAMPLES)


def _in_ledger(lake: LocalLake) -> list[SegmentKey]:
    return sorted({SegmentKey(event.crawl, event.segment) for event in read_ledger(lake.root)})


def withdraw_samples(lake: Lake) -> None:
    """Delete drawn samples that show a listed picture.

    Training again may take days, and only the report is made from the samples, which does without
    them: a person materializes them again.
    """
    folder, lists = lake.folder(SAMPLES), read_lists(lake.current(*FOLDERS))
    if not folder.exists() or not shows_listed(folder, lists):
        return
    logger.info(
        f"deleting {folder}, which shows what is listed, or may: materialize {SAMPLES} again"
    )
    lake.withdraw(SAMPLES)


def drop_abandoned(lake: Lake) -> None:
    """Delete what killed runs left of unfinished partitions, where it holds listed rows.

    A partition that is being made now is left alone: its run reads the lists again before it ends.
    """
    lists = read_lists(lake.current(*FOLDERS))
    if not lists:
        return
    for left in lake.abandoned():
        # Indices, and what holds vectors before their rows, cannot be looked through.
        readable = rows_of(left.asset) is not None and not _holds_vectors(left.folder)
        if not readable or holds_listed(left.folder, lists):
            logger.info(
                f"deleting {left.folder}, left by a killed run: it holds what is listed, or may"
            )
            shutil.rmtree(left.folder)


def _holds_vectors(folder: Path) -> bool:
    return any(path.suffix in (".npy", ".index") for path in folder.rglob("*"))
