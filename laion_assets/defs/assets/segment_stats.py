"""The segment's funnel, histograms and runs, computed by DuckDB over every stage's files."""

import dagster as dg

from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.layout import SEGMENT_ASSETS, SEGMENT_STATS
from laion_assets.settings import Settings
from laion_assets.stats.segment import segment_stats as compute
from resources.lake import LakeResource

ASSET = Asset(SEGMENT_STATS, group="stats", revision=1)

_UPSTREAM = tuple(asset for asset in SEGMENT_ASSETS if asset != SEGMENT_STATS)


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(settings, segments),
        deps=list(_UPSTREAM),
        kinds={"duckdb", "parquet"},
        description=__doc__,
    )
    @retrying_transient
    def segment_stats(
        context: dg.AssetExecutionContext, lake: LakeResource
    ) -> dg.MaterializeResult:
        with publishing(context, lake.open(), upstream=_UPSTREAM) as made:
            made.staging.not_content = ("runs.parquet",)
            folders = {asset: made.input(asset) for asset in _UPSTREAM}
            made.staging.metadata = compute(folders, made.out)
        return made.result(funnel=table_preview(made.rows, ["stage", "reason", "n"], rows=60))

    return segment_stats
