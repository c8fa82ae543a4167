"""Which WAT files a segment has, and which of them this deployment takes; of a URL list, which of
its rows."""

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets import schemas
from laion_assets.defs.assets.lists import begin_observing
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import key_of, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.files import atomic_path
from laion_assets.layout import WAT_MANIFEST
from laion_assets.settings import Settings
from laion_assets.url_lists.crawl import list_crawl
from resources.crawl_source import CrawlSourceResource
from resources.lake import LakeResource

ASSET = Asset(WAT_MANIFEST, group="crawl", revision=1, asks_network=True, fresh=True)


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(settings, segments, versioned=[settings.crawl_source]),
        kinds={"http", "parquet"},
        description=__doc__,
    )
    @retrying_transient
    def wat_manifest(
        context: dg.AssetExecutionContext, lake: LakeResource, crawl_source: CrawlSourceResource
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        source = list_crawl(settings.lists, key.crawl) if key.is_of_list else crawl_source.open()
        segment = source.segment(key.crawl, key.segment)
        taken = set(source.taken(segment))
        table = pa.table(
            {
                "wat_file": list(segment.wat_files),
                "taken": [wat_file in taken for wat_file in segment.wat_files],
                "segment_id": [segment.segment_id] * len(segment.wat_files),
            },
            schema=schemas.WAT_MANIFEST,
        )
        with publishing(context, store, options=source.options) as made:
            with atomic_path(made.out / "manifest.parquet") as path:
                pq.write_table(table, path, compression="zstd")
            made.staging.metadata = {
                "segment_id": segment.segment_id,
                "wat_files": len(segment.wat_files),
                "wat_files_taken": len(taken),
            }
        begin_observing(context, store)
        return made.result(preview=table_preview(made.rows, ["wat_file", "taken"]))

    return wat_manifest
