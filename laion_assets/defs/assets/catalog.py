"""`catalog.duckdb`: views and macros over all the lake's parquet, for ad-hoc SQL."""

import dagster as dg

from laion_assets.defs.declaration import Asset
from laion_assets.defs.publishing import fetch_tables, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.layout import CATALOG, SEGMENT_STATS, segment_assets, subset_asset
from laion_assets.settings import Settings
from laion_assets.stats.catalog import build_catalog
from resources.lake import LakeResource

ASSET = Asset(CATALOG, group="stats", revision=3, aggregate=True, fresh=True)


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
        made_of = {
            f"{asset}/{key}": store.manifest(asset, key).data_version
            for asset in segment_assets(settings.subsets)
            for key in store.segments(asset)
        }
        with publishing(context, store, made_of=made_of) as made:
            fetch_tables(store, settings)
            # DuckDB gives each file an id of its own; what the views show is what they are made of.
            made.staging.data_version = made.staging.fingerprint
            path = made.out / "catalog.duckdb"
            made.staging.metadata = build_catalog(store.local_root, path, subsets)
        return made.result()

    return catalog
