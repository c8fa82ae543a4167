"""Takes listed samples out of everything that has been made, by rebuilding what holds them.

The runs are ordinary runs of Dagster on the deployment's instance, all in this process. How a stage
leaves out listed rows does not belong here.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg

from laion_assets.defs.assets.dataset_report import SHOWS_SAMPLES
from laion_assets.defs.assets.lists import first_observations, observations
from laion_assets.defs.build import AGGREGATES
from laion_assets.defs.internals import stale_causes
from laion_assets.defs.jobs import runnable
from laion_assets.defs.partitions import crawls, partition_key
from laion_assets.defs.removal.forget import forget_superseded
from laion_assets.defs.removal.interrupted import end_interrupted, run_tags
from laion_assets.defs.removal.listed import further_subsets, holds_listed, rows_of
from laion_assets.defs.removal.survey import Survey, survey
from laion_assets.generation.shown_samples import shows_listed
from laion_assets.lake import Lake
from laion_assets.layout import (
    DALLE_SAMPLES,
    WAT_MANIFEST,
    SegmentKey,
    with_subsets,
)
from laion_assets.removals.active import FOLDERS, read_lists
from laion_assets.removals.ledger import EVENTS, read_ledger

logger = logging.getLogger(__name__)


class RemovalError(RuntimeError):
    """A partition could not be rebuilt; the message says which and why."""


def observe(lake: Lake, instance: dg.DagsterInstance) -> Survey:
    """Survey the lake for the lists' entries, and report to Dagster which partitions they concern.

    The reported observations make these partitions stale.
    """
    lists = read_lists(lake.current(*FOLDERS))
    for event in first_observations(instance, lists):
        instance.report_runless_asset_event(event)
    found = survey(lake, lists)
    for event in observations(read_lists(lake.current(*FOLDERS)), found.keys):
        instance.report_runless_asset_event(event)
    return found


def apply(
    lake: Lake,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    found: Survey,
) -> None:
    """Rebuild what :func:`observe` found, what was made of that, and the aggregates.

    Only assets that exist are rebuilt. A call continues where a killed one stopped. Raises
    :class:`RemovalError`, at the end if segments could not be rebuilt.
    """
    _refuse_unknown_subsets(lake, definitions, found)
    if ended := end_interrupted(instance):
        logger.info(f"{ended} runs of a removal that was killed are ended: this one goes on")
    known = set(instance.get_dynamic_partitions(crawls.name or ""))
    keys = sorted({*found.keys, *_unfinished(lake, definitions)})
    unknown = sorted({key.crawl for key in keys} - known)
    if unknown:
        raise RemovalError(
            f"Dagster's instance does not know the crawls {', '.join(unknown)}: set DAGSTER_HOME "
            "to the instance that made this lake"
        )
    failed = []
    for key in keys:
        try:
            _rebuild(lake, instance, definitions, key, sorted(found.holding(key)))
        except RemovalError as error:
            # What can be taken out elsewhere is taken out all the same.
            logger.error(str(error))
            failed.append(str(error))
    withdraw_samples(lake)
    drop_abandoned(lake)
    behind = _aggregates_behind(lake)
    if behind:
        _run(instance, definitions, None, behind)
    if forgotten := forget_superseded(instance, _in_ledger(lake)):
        logger.info(f"{forgotten} earlier materializations are deleted from Dagster's event log")
    if failed:
        raise RemovalError("; ".join(failed))


def _refuse_unknown_subsets(lake: Lake, definitions: dg.Definitions, found: Survey) -> None:
    known = definitions.resolve_asset_graph().get_all_asset_keys()
    holding = {asset for key in found.keys for asset in found.holding(key)}
    unknown = [
        name for name in further_subsets(lake) if name in holding and dg.AssetKey(name) not in known
    ]
    if unknown:
        raise RemovalError(
            f"{', '.join(unknown)} in {lake} holds listed samples, or may, but the settings do not "
            "have such a subset: add it to them again, or delete its folder"
        )


def _made(lake: Lake, key: SegmentKey) -> list[str]:
    """Return the segment's existing assets, in the order of processing."""
    assets = with_subsets(further_subsets(lake))
    return [asset for asset in assets if lake.has(asset, key)]


def _rebuild(
    lake: Lake,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    key: SegmentKey,
    holding: Sequence[str],
) -> None:
    """Run until no asset of the segment is stale.

    ``holding``: assets that hold listed rows, or may hold some.
    """
    known = definitions.resolve_asset_graph().get_all_asset_keys()
    # A subset that is no longer in the settings holds nothing listed: else it was refused above.
    made = [asset for asset in _made(lake, key) if dg.AssetKey(asset) in known]
    for _ in made:
        stale = {*_stale(instance, definitions, made, key), *holding}
        selected = runnable(definitions, made, stale)
        if not selected:
            return
        _run(instance, definitions, key, selected)
        holding = []
    raise RemovalError(f"{key}: {', '.join(made)} stay stale although they were rebuilt")


def _run(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    key: SegmentKey | None,
    assets: Sequence[str],
) -> None:
    what = str(key) if key else "all segments"
    logger.info(f"{what}: rebuilding {', '.join(assets)}")
    result = definitions.resolve_job_def("segment" if key else "aggregates").execute_in_process(
        instance=instance,
        partition_key=partition_key(key) if key else None,
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        raise_on_error=False,
        tags=run_tags(),
        run_config={"loggers": {"console": {"config": {"log_level": "WARNING"}}}},
    )
    if not result.success:
        raise RemovalError(
            f"the run {result.run_id} for {what} did not succeed: see why in Dagster's UI. Given "
            "again, the same command continues where this one stopped"
        )


def _stale(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    assets: Sequence[str],
    key: SegmentKey,
) -> list[str]:
    """Return the assets that Dagster calls stale. What was never materialized is not stale."""
    causes = stale_causes(instance, definitions)
    return [asset for asset in assets if causes(asset, key)]


def _unfinished(lake: Lake, definitions: dg.Definitions) -> Iterator[SegmentKey]:
    """Yield segments that rows were taken out of and of which an asset is older than what it is
    made of.

    The WAT manifest does not count: it holds no samples.
    """
    graph = definitions.resolve_asset_graph()
    known = graph.get_all_asset_keys()
    for key in _in_ledger(lake):
        of_graph = (dg.AssetKey(asset) for asset in _made(lake, key) if asset != WAT_MANIFEST)
        made = [asset for asset in of_graph if asset in known]
        started = {asset: lake.manifest(asset.to_user_string(), key).started for asset in made}
        if any(
            started[upstream] > started[asset]
            for asset in made
            for upstream in graph.get(asset).parent_keys & started.keys()
        ):
            yield key


def _aggregates_behind(lake: Lake) -> list[str]:
    """Return the aggregates that are older than a segment that rows were taken out of.

    Dagster does not compute staleness across that many partitions.
    """
    newest = max(
        (
            lake.manifest(asset, key).started
            for key in _in_ledger(lake)
            for asset in _made(lake, key)[1:]
        ),
        default="",
    )
    made = [asset for asset in AGGREGATES if lake.has(asset)]
    return [
        asset
        for asset in made
        if lake.manifest(asset).started <= newest or _shows_withdrawn(lake, asset)
    ]


def _shows_withdrawn(lake: Lake, asset: str) -> bool:
    """Return True for a report that shows drawn samples which have been withdrawn since."""
    return bool(lake.manifest(asset).metadata.get(SHOWS_SAMPLES)) and not lake.has(DALLE_SAMPLES)


def _in_ledger(lake: Lake) -> list[SegmentKey]:
    """Return the segments that the removal ledger names."""
    events = read_ledger(lake.current(EVENTS, deep=True))
    return sorted({SegmentKey(event.crawl, event.segment) for event in events})


def withdraw_samples(lake: Lake) -> None:
    """Delete drawn samples that show a listed picture.

    They are not rebuilt here: training may take days, and only the report uses them, which does
    without. A person materializes them again.
    """
    folder, lists = lake.folder(DALLE_SAMPLES), read_lists(lake.current(*FOLDERS))
    if not folder.exists() or not shows_listed(folder, lists):
        return
    logger.info(
        f"deleting {folder}, which shows listed pictures, or may: materialize {DALLE_SAMPLES} again"
    )
    lake.withdraw(DALLE_SAMPLES)


def drop_abandoned(lake: Lake) -> None:
    """Delete unfinished partitions that killed runs left behind, where they hold listed rows.

    A partition that a run is making now is left alone: that run rereads the lists before it ends.
    """
    lists = read_lists(lake.current(*FOLDERS))
    if not lists:
        return
    for left in lake.abandoned():
        # Indices cannot be searched for rows, nor can vectors whose rows are not written yet.
        readable = rows_of(left.asset) is not None and not _holds_vectors(left.folder)
        if not readable or holds_listed(left.folder, lists):
            logger.info(
                f"deleting {left.folder}, left by a killed run: it holds listed rows, or may"
            )
            shutil.rmtree(left.folder)


def _holds_vectors(folder: Path) -> bool:
    return any(path.suffix in (".npy", ".index") for path in folder.rglob("*"))
