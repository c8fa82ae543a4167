"""CLIP embeddings of images and texts, row-aligned with their metadata."""

import dagster as dg

from laion_assets.clip.embed import embed_shards
from laion_assets.clip.weights_identity import weights_identity
from laion_assets.defs import checks
from laion_assets.defs.assets.lists import EMBED_POOL
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import key_of, materialized, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.settings import Settings
from resources.clip import ClipModelResource
from resources.lake import LakeResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="embeddings",
        partitions_def=segments,
        deps=["image_shards"],
        code_version=code_version(
            2,
            settings.clip,
            weights_identity(settings.clip),
            leave_out=settings.clip.NOT_IN_VERSION,
        ),
        check_specs=checks.check_specs("embeddings"),
        pool=EMBED_POOL,
        kinds={"torch", "numpy"},
        description=__doc__,
        **scheduling(settings, "embeddings"),
    )
    @retrying_transient
    def embeddings(
        context: dg.AssetExecutionContext, lake: LakeResource, clip: ClipModelResource
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        model = clip.load()
        with publishing(
            context,
            store,
            key,
            upstream=["image_shards"],
            made_of={"model": model.version},
            options=clip,
            leave_out=clip.NOT_IN_VERSION,
        ) as staging:
            shards = store.published("image_shards", key)
            embedded = embed_shards(shards, staging.path, model, clip)
            staging.counts = [embedded.counts]
            staging.metadata = embedded.metadata() | {
                "model": model.key,
                "model_version": model.version,
                "dimensions": model.dim,
            }
            kept_before = store.manifest("image_shards", key).stage("images").kept
            rows = checks.rows_in(staging.path / "metadata", "metadata_*.parquet")
            checked = checks.require(
                checks.vectors_sound(staging.path),
                checks.funnel_adds_up("embeddings", embedded.counts, rows, kept_before),
            )
        folder = store.folder("embeddings", key)
        return materialized(
            context,
            store,
            staging,
            key,
            checks=checked,
            extra={"preview": table_preview(folder / "metadata", ["text", "width", "height"])},
        )

    return embeddings
