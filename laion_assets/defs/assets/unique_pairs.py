"""The segment's pairs that no other segment holds, after removals and URL blocklists."""

import dagster as dg

from laion_assets import schemas
from laion_assets.dedup.ledger import claiming, unsettled
from laion_assets.defs import checks, pools
from laion_assets.defs.assets.lists import note_taken_out
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import key_of, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.layout import DEDUP_LEDGER, LISTS, PAIR_PARQUET, UNIQUE_PAIRS
from laion_assets.removals.active import FOLDERS, read_lists
from laion_assets.settings import Settings
from laion_assets.tables import ROWS_PER_PART, rows_in
from resources.lake import LakeResource

ASSET = Asset(
    UNIQUE_PAIRS,
    group="pairs",
    revision=3,
    checks=("schema_exact", "keys_unique", "funnel_adds_up"),
    pool=pools.LEDGER,
)


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(settings, segments),
        deps=[PAIR_PARQUET, *LISTS],
        kinds={"python", "parquet"},
        description=__doc__,
    )
    @retrying_transient
    def unique_pairs(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        lists = read_lists(store.current(*FOLDERS))
        # The lease ends last: claims count once the partition is published. In a folder it is no
        # lock, and others claim meanwhile; in an object store, all that `claiming` does is in it.
        with (
            store.lease(DEDUP_LEDGER, UNIQUE_PAIRS, unsettled) as lease,
            claiming(lease.folder, lease.partitions, key) as claims,
            publishing(context, store, upstream=[PAIR_PARQUET]) as made,
        ):
            counts = claims.write(
                made.input(PAIR_PARQUET),
                made.out,
                removals=lists.removals,
                blocklists=lists.blocklists,
            )
            lease.save()
            made.staging.counts = [counts]
            parts = max(1, -(-counts.kept // ROWS_PER_PART))
            made.require(
                checks.schema_exact(made.rows, schemas.PAIRS, parts),
                checks.keys_unique(made.rows, "uid"),
                checks.funnel_adds_up(counts, rows_in(*made.rows), made.kept(PAIR_PARQUET)),
            )
        note_taken_out(made, lists, claims.removed)
        return made.result(preview=table_preview(made.rows, ["text", "url", "page_url"]))

    return unique_pairs
