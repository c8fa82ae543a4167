"""Every IMG-with-alt pair of a segment that passes the text rules and is on no list, once."""

import dagster as dg
import pyarrow.parquet as pq

from laion_assets import schemas
from laion_assets.defs import checks
from laion_assets.defs.assets.lists import tell_lists
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import key_of, made_of_the_same, materialized, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.pairs.rules import PairRules
from laion_assets.pairs.segment import extract_segment, segment_counts
from laion_assets.pairs.take_out import start_from, take_out
from laion_assets.removals.active import FOLDERS, read_lists
from laion_assets.settings import Settings
from resources.crawl_source import CrawlSourceResource
from resources.lake import LakeResource
from resources.rules import PairRulesResource, WorkResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="pairs",
        partitions_def=segments,
        deps=["wat_manifest", "removals", "blocklists"],
        code_version=code_version(1, settings.pairs),
        check_specs=checks.check_specs("pair_parquet"),
        kinds={"python", "parquet"},
        description=__doc__,
        **scheduling(settings, "pair_parquet"),
    )
    @retrying_transient
    def pair_parquet(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        crawl_source: CrawlSourceResource,
        pair_rules: PairRulesResource,
        work: WorkResource,
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        manifest = pq.read_table(store.published("wat_manifest", key) / "manifest.parquet")
        lists = read_lists(store.current(*FOLDERS))
        wat_files = [row["wat_file"] for row in manifest.to_pylist() if row["taken"]]
        with publishing(
            context, store, key, upstream=["wat_manifest"], options=pair_rules
        ) as staging:
            start_from(made_of_the_same(store, "pair_parquet", key, staging), staging.path, lists)
            extract_segment(
                wat_files,
                crawl_source.open().fetch,
                staging.path,
                # A plain copy: a resource cannot be pickled into worker processes.
                PairRules.model_validate(pair_rules.model_dump()),
                crawl=key.crawl,
                segment=key.segment,
                workers=work.workers,
            )
            taken = take_out(staging.path, lists)
            staging.counts = segment_counts(sorted(staging.path.glob("part-*.parquet")))
            pairs = next(counts for counts in staging.counts if counts.stage == "pairs")
            checked = checks.require(
                checks.schema_exact("pair_parquet", staging.path, schemas.PAIRS, len(wat_files)),
                checks.keys_unique("pair_parquet", staging.path, "uid"),
                checks.funnel_adds_up("pair_parquet", pairs, checks.rows_in(staging.path), None),
            )
        tell_lists(context, store, key, lists, taken, returns=True)
        folder = store.folder("pair_parquet", key)
        return materialized(
            context,
            store,
            staging,
            key,
            checks=checked,
            extra={"preview": table_preview(folder, ["text", "url", "language", "license"])},
        )

    return pair_parquet
