"""The segment's pairs that no other segment holds, after removals and URL blocklists."""

import dagster as dg

from laion_assets import schemas
from laion_assets.dedup.ledger import claiming, unsettled
from laion_assets.defs import checks
from laion_assets.defs.assets.lists import LEDGER_POOL, tell_lists
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import key_of, materialized, publishing
from laion_assets.defs.retries import tried_again
from laion_assets.removals.active import FOLDERS, read_lists
from laion_assets.settings import Settings
from resources.lake import LakeResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="pairs",
        partitions_def=segments,
        deps=["pair_parquet", "removals", "blocklists"],
        code_version=code_version(2),
        check_specs=checks.check_specs("unique_pairs"),
        pool=LEDGER_POOL,
        kinds={"python", "parquet"},
        description=__doc__,
        **scheduling(settings, "unique_pairs"),
    )
    @tried_again
    def unique_pairs(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        lists = read_lists(store.current(*FOLDERS))
        # The ledger's lease ends last: claims count once the partition is published.
        with (
            store.lease("dedup_ledger", "unique_pairs", unsettled) as lease,
            claiming(lease.folder, lease.partitions, key) as claims,
            publishing(context, store, key, upstream=["pair_parquet"]) as staging,
        ):
            pairs = store.published("pair_parquet", key)
            counts = claims.write(
                pairs, staging.path, removals=lists.removals, blocklists=lists.blocklists
            )
            lease.save()
            staging.counts = [counts]
            kept_before = store.manifest("pair_parquet", key).stage("pairs").kept
            rows = checks.rows_in(staging.path)
            checked = checks.require(
                checks.schema_exact(
                    "unique_pairs", staging.path, schemas.PAIRS, checks.parts_in(pairs)
                ),
                checks.keys_unique("unique_pairs", staging.path, "uid"),
                checks.funnel_adds_up("unique_pairs", counts, rows, kept_before),
            )
        tell_lists(context, store, key, lists, claims.taken)
        folder = store.folder("unique_pairs", key)
        return materialized(
            context,
            store,
            staging,
            key,
            checks=checked,
            extra={"preview": table_preview(folder, ["text", "url", "page_url"])},
        )

    return unique_pairs
