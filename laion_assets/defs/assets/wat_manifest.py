"""Which WAT files a segment has, and which of them this deployment takes."""

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.defs.assets.lists import begin_observing
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import key_of, materialized, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.files import atomic_path
from laion_assets.settings import Settings
from resources.crawl_source import CrawlSourceResource
from resources.lake import LakeResource

SCHEMA = pa.schema([("wat_file", pa.string()), ("taken", pa.bool_()), ("segment_id", pa.string())])

LEAVE_OUT = ("collinfo_url", "data_url", "storage_options", "attempts", "back_off_s")
"""Options that say how the crawl source is reached, not what is taken of it."""


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="crawl",
        partitions_def=segments,
        code_version=code_version(1, settings.crawl_source, leave_out=LEAVE_OUT),
        kinds={"http", "parquet"},
        description=__doc__,
        **scheduling(settings, "wat_manifest"),
    )
    @retrying_transient
    def wat_manifest(
        context: dg.AssetExecutionContext, lake: LakeResource, crawl_source: CrawlSourceResource
    ) -> dg.MaterializeResult:
        key, store, source = key_of(context), lake.open(), crawl_source.open()
        segment = source.segment(key.crawl, key.segment)
        taken = set(source.taken(segment))
        table = pa.table(
            {
                "wat_file": list(segment.wat_files),
                "taken": [wat_file in taken for wat_file in segment.wat_files],
                "segment_id": [segment.segment_id] * len(segment.wat_files),
            },
            schema=SCHEMA,
        )
        with publishing(
            context, lake.open(), key, options=crawl_source, leave_out=LEAVE_OUT
        ) as staging:
            with atomic_path(staging.path / "manifest.parquet") as path:
                pq.write_table(table, path, compression="zstd")
            staging.metadata = {
                "segment_id": segment.segment_id,
                "wat_files": len(segment.wat_files),
                "wat_files_taken": len(taken),
            }
        begin_observing(context, store)
        folder = store.folder("wat_manifest", key)
        return materialized(
            context,
            store,
            staging,
            key,
            extra={"preview": table_preview(folder, ["wat_file", "taken"])},
        )

    return wat_manifest
