"""The jobs: a segment from end to end, and the aggregates over all segments."""

from collections.abc import Iterable

import dagster as dg

from laion_assets.defs.internals import AssetJob
from laion_assets.defs.retention import prune
from laion_assets.layout import DALLE_SAMPLES, LISTS
from laion_assets.settings import Retention


def lists_job() -> AssetJob:
    return dg.define_asset_job(
        "observe_lists",
        selection=dg.AssetSelection.assets(*LISTS),
        executor_def=dg.in_process_executor,
        description="Looks which partitions the removal lists and blocklists concern.",
    )


def segment_job(assets: Iterable[str]) -> AssetJob:
    """One segment, in one process: the models are loaded once, and a step costs no new process."""
    return dg.define_asset_job(
        "segment",
        selection=dg.AssetSelection.assets(*assets),
        executor_def=dg.in_process_executor,
        description="One Common Crawl segment, from its WAT files to its index and statistics.",
    )


def aggregates_job(assets: Iterable[str]) -> AssetJob:
    return dg.define_asset_job(
        "aggregates",
        selection=dg.AssetSelection.assets(*assets),
        executor_def=dg.in_process_executor,
        description="The merged index, the catalog and the report over all segments.",
    )


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


def generation_job() -> AssetJob:
    return dg.define_asset_job(
        "generation",
        selection=dg.AssetSelection.assets(DALLE_SAMPLES),
        executor_def=dg.in_process_executor,
        description="Trains a small DALL-E on the subset and draws with it.",
    )
