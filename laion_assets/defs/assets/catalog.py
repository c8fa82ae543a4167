"""`catalog.duckdb`: what there is, and views and macros over its parquet, for ad-hoc SQL."""

import dagster as dg

from laion_assets.defs.declaration import Asset
from laion_assets.defs.publishing import publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.layout import CATALOG, SEGMENT_STATS, subset_asset
from laion_assets.settings import Settings
from laion_assets.stats.catalog import build_catalog
from resources.lake import LakeResource

ASSET = Asset(CATALOG, group="stats", revision=4, aggregate=True, fresh=True)
FILE = "catalog.duckdb"


def build(settings: Settings) -> dg.AssetsDefinition:
    subsets = [subset_asset(name) for name in settings.subsets]

    @dg.asset(
        **ASSET.arguments(settings, versioned=subsets),
        deps=[SEGMENT_STATS, *subsets],
        kinds={"duckdb"},
        description=__doc__,
    )
    @retrying_transient
    def catalog(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        store = lake.open()
        with publishing(context, store) as made:
            before = made.earlier(FILE)
            previous = before / FILE if before and (before / FILE).exists() else None
            made.staging.metadata = build_catalog(store, made.out / FILE, subsets, previous)
            # DuckDB gives each file an id of its own; what the catalog shows is what it is made of.
            made.staging.data_version = made.staging.metadata["made_of"]
        return made.result()

    return catalog
