"""The segment's funnel, histograms and runs, computed by DuckDB over every stage's files."""

import dagster as dg

from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.jobs import SEGMENT_ASSETS
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import key_of, materialized, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.settings import Settings
from laion_assets.stats.segment import segment_stats as compute
from resources.lake import LakeResource

STAGE_ASSETS = tuple(asset for asset in SEGMENT_ASSETS if asset != "segment_stats")


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="stats",
        partitions_def=segments,
        deps=list(STAGE_ASSETS),
        code_version=code_version(1),
        kinds={"duckdb", "parquet"},
        description=__doc__,
        **scheduling(settings, "segment_stats"),
    )
    @retrying_transient
    def segment_stats(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        with publishing(context, store, key, upstream=STAGE_ASSETS) as staging:
            staging.not_content = ("runs.parquet",)
            folders = {asset: store.published(asset, key) for asset in STAGE_ASSETS}
            staging.metadata = compute(folders, staging.path)
        folder = store.folder("segment_stats", key)
        return materialized(
            context,
            store,
            staging,
            key,
            extra={"funnel": table_preview(folder, ["stage", "reason", "n"], "funnel.parquet", 60)},
        )

    return segment_stats
