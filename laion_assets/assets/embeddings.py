"""CLIP embeddings of images and texts, row-aligned with their metadata."""

import dagster as dg

from laion_assets import checks
from laion_assets.assets.making import data_versions, key_of, materialized, publishing
from laion_assets.assets.outside import EMBED_POOL
from laion_assets.clip.embed import embed_shards
from laion_assets.metadata import table_preview
from laion_assets.settings import Settings
from laion_assets.versions import code_version
from resources.clip import ClipModelResource
from resources.lake import LakeResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="embeddings",
        partitions_def=segments,
        deps=["image_shards"],
        code_version=code_version(1, settings.clip, leave_out=settings.clip.NOT_IN_VERSION),
        check_specs=checks.check_specs("embeddings"),
        pool=EMBED_POOL,
        kinds={"torch", "numpy"},
        description=__doc__,
    )
    def embeddings(
        context: dg.AssetExecutionContext, lake: LakeResource, clip: ClipModelResource
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        model = clip.load()
        made_of = data_versions(store, ["image_shards"], key) | {"model": model.version}
        with publishing(context, store, made_of, key) as staging:
            staging.counts = [
                embed_shards(
                    store.published("image_shards", key),
                    staging.path,
                    model,
                    clip,
                    log=context.log.info,
                )
            ]
            staging.metadata = {
                "model": model.key,
                "model_version": model.version,
                "dimensions": model.dim,
            }
        folder = store.folder("embeddings", key)
        counts = staging.published.stage("embeddings")
        kept_before = store.manifest("image_shards", key).stage("images").kept
        return materialized(
            context,
            store,
            staging,
            key,
            checks=[
                checks.vectors_sound(folder),
                checks.funnel_adds_up(
                    "embeddings",
                    counts,
                    checks.rows_in(folder / "metadata", "metadata_*.parquet"),
                    kept_before,
                ),
            ],
            extra={"preview": table_preview(folder / "metadata", ["text", "width", "height"])},
        )

    return embeddings
