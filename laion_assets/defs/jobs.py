"""The jobs: a segment from end to end, and the aggregates over all segments."""

from collections.abc import Iterable
from typing import Final

import dagster as dg

from laion_assets.defs.internals import AssetJob
from laion_assets.defs.retention import prune
from laion_assets.settings import Retention

SEGMENT_ASSETS: Final = (
    "wat_manifest",
    "pair_parquet",
    "unique_pairs",
    "image_shards",
    "embeddings",
    "scored_pairs",
    "filtered_subset",
    "knn_index",
    "segment_stats",
)
AGGREGATES: Final = ("search_index", "catalog", "dataset_report")
SUBSET_PREFIX: Final = "subset_"


def subset_asset(name: str) -> str:
    """The asset, and the catalog's view, of a further subset: `laion5b-en` -> `subset_laion5b_en`.

    Dagster's names have no hyphens.
    """
    return f"{SUBSET_PREFIX}{name.replace('-', '_')}"


def segment_assets(subsets: Iterable[str] = ()) -> list[str]:
    """:data:`SEGMENT_ASSETS` and the further subsets, which stand behind all they are made of."""
    further = [subset_asset(name) for name in subsets]
    return [*SEGMENT_ASSETS[:-1], *further, SEGMENT_ASSETS[-1]]


LISTS: Final = ("removals", "blocklists")


def lists_job() -> AssetJob:
    return dg.define_asset_job(
        "observe_lists",
        selection=dg.AssetSelection.assets(*LISTS),
        executor_def=dg.in_process_executor,
        description="Looks which partitions the removal lists and blocklists concern.",
    )


def segment_job(subsets: Iterable[str] = ()) -> AssetJob:
    """One segment, in one process: the models are loaded once, and a step costs no new process."""
    return dg.define_asset_job(
        "segment",
        selection=dg.AssetSelection.assets(*segment_assets(subsets)),
        executor_def=dg.in_process_executor,
        description="One Common Crawl segment, from its WAT files to its index and statistics.",
    )


def aggregates_job() -> AssetJob:
    return dg.define_asset_job(
        "aggregates",
        selection=dg.AssetSelection.assets(*AGGREGATES),
        executor_def=dg.in_process_executor,
        description="The merged index, the catalog and the report over all segments.",
    )


def prune_job(policy: Retention) -> dg.JobDefinition:
    """Not an asset's: it makes nothing, and is the only one that deletes runs."""

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
        selection=dg.AssetSelection.assets("dalle_samples"),
        executor_def=dg.in_process_executor,
        description="Trains a small DALL-E on the subset and draws with it.",
    )
