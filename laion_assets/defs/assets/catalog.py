"""`catalog.duckdb`: views and macros over all the lake's parquet, for ad-hoc SQL."""

import dagster as dg

from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.jobs import segment_assets, subset_asset
from laion_assets.defs.publishing import fetch_tables, materialized, publishing
from laion_assets.defs.retries import tried_again
from laion_assets.settings import Settings
from laion_assets.stats.catalog import build_catalog
from resources.lake import LakeResource


def build(settings: Settings) -> dg.AssetsDefinition:
    subsets = [subset_asset(name) for name in settings.subsets]

    @dg.asset(
        group_name="stats",
        deps=["segment_stats", *subsets],
        code_version=code_version(3, *subsets),
        kinds={"duckdb"},
        description=__doc__,
        **scheduling(settings, "catalog"),
    )
    @tried_again
    def catalog(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        store = lake.open()
        made_of = {
            f"{asset}/{key}": store.manifest(asset, key).data_version
            for asset in segment_assets(settings.subsets)
            for key in store.segments(asset)
        }
        with publishing(context, store, made_of=made_of) as staging:
            fetch_tables(store, settings)
            # DuckDB gives each file an id of its own; what the views show is what they are made of.
            staging.data_version = staging.fingerprint
            staging.metadata = build_catalog(
                store.local_root, staging.path / "catalog.duckdb", subsets
            )
        return materialized(context, store, staging)

    return catalog
