"""Every IMG-with-alt pair of a segment, or row of a URL list, that passes the text rules and is on
no removal list or blocklist, once."""

import dagster as dg

from laion_assets import schemas
from laion_assets.defs import checks
from laion_assets.defs.assets.lists import note_taken_out
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import key_of, made_of_the_same, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.layout import LISTS, PAIR_PARQUET, WAT_MANIFEST
from laion_assets.lookup.write import write_lookups
from laion_assets.pairs.extract import extract_wat
from laion_assets.pairs.segment import Extract, extract_segment, segment_counts
from laion_assets.pairs.take_out import start_from, take_out
from laion_assets.removals.active import FOLDERS, read_lists
from laion_assets.settings import Settings
from laion_assets.tables import read_parquet, rows_in
from laion_assets.url_lists.crawl import ListCrawl, list_crawl
from resources.crawl_source import CrawlSourceResource
from resources.lake import LakeResource
from resources.rules import PairRulesResource, WorkResource

ASSET = Asset(
    PAIR_PARQUET,
    group="pairs",
    revision=4,
    checks=("schema_exact", "keys_unique", "funnel_adds_up"),
    asks_network=True,
)


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(settings, segments, versioned=[settings.pairs]),
        deps=[WAT_MANIFEST, *LISTS],
        kinds={"python", "parquet"},
        description=__doc__,
    )
    @retrying_transient
    def pair_parquet(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        crawl_source: CrawlSourceResource,
        pair_rules: PairRulesResource,
        work: WorkResource,
    ) -> dg.MaterializeResult:
        key, store, rules = key_of(context), lake.open(), pair_rules.options()
        source = list_crawl(settings.lists, key.crawl) if key.is_of_list else crawl_source.open()
        lists = read_lists(store.current(*FOLDERS))
        with publishing(context, store, upstream=[WAT_MANIFEST], options=rules) as made:
            (manifest,) = made.input_rows(WAT_MANIFEST)
            rows = read_parquet(manifest).to_pylist()
            wat_files = [row["wat_file"] for row in rows if row["taken"]]
            before = made.earlier() if made_of_the_same(made) else None
            # All WAT files are read again for what one damaged part lacks.
            start_from(None if made.damaged else before, made.out, lists)
            extract: Extract = extract_wat
            if isinstance(source, ListCrawl):
                segment_id = made.manifest(WAT_MANIFEST).metadata["segment_id"]
                extract = source.extract(wat_files, segment_id)
            extract_segment(
                wat_files,
                source.fetch,
                made.out,
                rules,
                crawl=key.crawl,
                segment=key.segment,
                workers=work.workers,
                extract=extract,
                kind=source.kind,
            )
            taken = take_out(made.out, lists)
            write_lookups(PAIR_PARQUET, made.out)
            made.staging.counts = segment_counts(made.rows)
            pairs = next(counts for counts in made.staging.counts if counts.stage == "pairs")
            made.require(
                checks.schema_exact(made.rows, schemas.PAIRS, max(1, len(made.rows))),
                checks.keys_unique(made.rows, "uid"),
                checks.funnel_adds_up(pairs, rows_in(*made.rows), None),
            )
        note_taken_out(made, lists, taken, returns=True)
        return made.result(preview=table_preview(made.rows, ["text", "url", "language", "license"]))

    return pair_parquet
