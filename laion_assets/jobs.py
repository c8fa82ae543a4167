"""The jobs: a segment from end to end, and the aggregates over all segments."""

from __future__ import annotations

from typing import Final

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

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


LISTS: Final = ("removals", "blocklists")


def lists_job() -> UnresolvedAssetJobDefinition:
    return dg.define_asset_job(
        "observe_lists",
        selection=dg.AssetSelection.assets(*LISTS),
        executor_def=dg.in_process_executor,
        description="Looks which partitions the removal lists and blocklists concern.",
    )


def segment_job() -> UnresolvedAssetJobDefinition:
    """One segment, in one process: the models are loaded once, and a step costs no new process."""
    return dg.define_asset_job(
        "segment",
        selection=dg.AssetSelection.assets(*SEGMENT_ASSETS),
        executor_def=dg.in_process_executor,
        description="One Common Crawl segment, from its WAT files to its index and statistics.",
    )


def aggregates_job() -> UnresolvedAssetJobDefinition:
    return dg.define_asset_job(
        "aggregates",
        selection=dg.AssetSelection.assets(*AGGREGATES),
        executor_def=dg.in_process_executor,
        description="The merged index, the catalog and the report over all segments.",
    )
