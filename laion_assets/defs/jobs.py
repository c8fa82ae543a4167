"""The jobs: a segment from end to end, and the aggregates over all segments."""

from collections.abc import Collection, Iterable, Sequence

import dagster as dg

from laion_assets.defs.internals import AssetJob
from laion_assets.defs.retention import prune
from laion_assets.defs.verification import FILES_WHOLE
from laion_assets.layout import DALLE_SAMPLES, LISTS, RECIPE_COMPARISON
from laion_assets.settings import Retention


def _asset_job(name: str, assets: Iterable[str], description: str) -> AssetJob:
    """A run in one process: the models are loaded once, and a step costs no new process."""
    names = list(assets)
    # What a run has just written need not be read again. Lists have no files.
    whole = [dg.AssetCheckKey(dg.AssetKey(name), FILES_WHOLE) for name in {*names} - {*LISTS}]
    selection = dg.AssetSelection.assets(*names) - dg.AssetSelection.checks(*whole)
    executor = dg.in_process_executor
    return dg.define_asset_job(name, selection, executor_def=executor, description=description)


def lists_job() -> AssetJob:
    about = "Finds the partitions that the removal lists and blocklists concern."
    return _asset_job("observe_lists", LISTS, about)


def segment_job(assets: Iterable[str]) -> AssetJob:
    about = "One Common Crawl segment, from its WAT files to its index and statistics."
    return _asset_job("segment", assets, about)


def aggregates_job(assets: Iterable[str]) -> AssetJob:
    about = "The merged index, the catalog and the report over all segments."
    return _asset_job("aggregates", assets, about)


def generation_job() -> AssetJob:
    about = "Trains a small DALL-E on the subset and draws with it."
    return _asset_job("generation", [DALLE_SAMPLES], about)


def comparison_job() -> AssetJob:
    about = "Trains small models on what each recipe takes, and compares them."
    return _asset_job("comparison", [RECIPE_COMPARISON], about)


def prune_job(policy: Retention) -> dg.JobDefinition:
    """A plain job, not an asset job: it produces nothing, and no other job deletes runs."""

    @dg.op
    def prune_storage(context: dg.OpExecutionContext) -> None:
        context.log.info(f"deleted: {prune(context.instance, policy)}")

    @dg.job(
        executor_def=dg.in_process_executor,
        description="Deletes old runs' logs, and old runs that made nothing.",
    )
    def prune_runs() -> None:
        prune_storage()

    return prune_runs


def prune_schedules(job: dg.JobDefinition, policy: Retention) -> list[dg.ScheduleDefinition]:
    if not policy.at:
        return []
    running = dg.DefaultScheduleStatus.RUNNING
    return [dg.ScheduleDefinition(job=job, cron_schedule=policy.at, default_status=running)]


def runnable(
    definitions: dg.Definitions, assets: Sequence[str], stale: Collection[str]
) -> list[str]:
    """Return those of a segment's stale assets that one run can rebuild.

    ``assets``: the segment's, in the order of processing. One that depends on a stale asset through
    one that is not stale has to wait: that may become stale by the run.
    """
    graph = definitions.resolve_asset_graph()
    chosen: list[str] = []
    waiting: set[str] = set()
    for asset in assets:
        parents = {key.to_user_string() for key in graph.get(dg.AssetKey(asset)).parent_keys}
        if asset in stale and not parents & waiting:
            chosen.append(asset)
        elif parents & {*chosen, *waiting}:
            waiting.add(asset)
    return chosen
