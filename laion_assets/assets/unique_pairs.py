"""The segment's pairs that no other segment holds, after removals and URL blocklists."""

import dagster as dg

from laion_assets import checks, schemas
from laion_assets.assets.making import data_versions, key_of, materialized, publishing
from laion_assets.assets.outside import LEDGER_POOL, read_lists
from laion_assets.dedup.ledger import claim_segment
from laion_assets.metadata import table_preview
from laion_assets.settings import Settings
from laion_assets.versions import code_version
from resources.lake import LakeResource


def build(segments: dg.MultiPartitionsDefinition, _: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="pairs",
        partitions_def=segments,
        deps=["pair_parquet", "removals", "blocklists"],
        code_version=code_version(1),
        check_specs=checks.check_specs("unique_pairs"),
        pool=LEDGER_POOL,
        kinds={"python", "parquet"},
        description=__doc__,
    )
    def unique_pairs(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        lists = read_lists(store)
        made_of = data_versions(store, ["pair_parquet"], key) | lists.data_versions
        with publishing(context, store, made_of, key) as staging:
            staging.counts = [
                claim_segment(
                    store.root / "dedup_ledger",
                    key.crawl,
                    key.segment,
                    store.published("pair_parquet", key),
                    staging.path,
                    removals=lists.removals,
                    blocklists=lists.blocklists,
                    log=context.log.info,
                )
            ]
        folder = store.folder("unique_pairs", key)
        counts = staging.published.stage("unique_pairs")
        kept_before = store.manifest("pair_parquet", key).stage("pairs").kept
        return materialized(
            context,
            store,
            staging,
            key,
            checks=[
                checks.schema_exact("unique_pairs", folder, schemas.PAIRS),
                checks.keys_unique("unique_pairs", folder, "uid"),
                checks.funnel_adds_up("unique_pairs", counts, checks.rows_in(folder), kept_before),
            ],
            extra={"preview": table_preview(folder, ["text", "url", "page_url"])},
        )

    return unique_pairs
