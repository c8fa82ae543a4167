"""The segment's histograms and top values by DuckDB; its funnel is checked against the files."""

import dagster as dg

from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import numbers_table
from laion_assets.defs.publishing import publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.layout import SEGMENT_ASSETS, SEGMENT_STATS
from laion_assets.settings import Settings
from laion_assets.stats.segment import segment_stats as compute
from resources.lake import LakeResource

ASSET = Asset(SEGMENT_STATS, group="stats", revision=3)

_UPSTREAM = tuple(asset for asset in SEGMENT_ASSETS if asset != SEGMENT_STATS)

_UNREAD = ("*.tar", "*.index")


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
            folders = {asset: made.input(asset, _UNREAD) for asset in _UPSTREAM}
            made.staging.metadata = compute(folders, made.out)
            funnel = [
                {"stage": stage, "reason": reason, "n": n}
                for asset in _UPSTREAM
                for counts in made.manifest(asset).counts
                for stage, reason, n in counts.rows()
            ]
        return made.result(funnel=numbers_table(funnel))

    return segment_stats
