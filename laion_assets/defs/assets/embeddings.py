"""CLIP embeddings of images and texts, row-aligned with their metadata."""

import dagster as dg

from laion_assets.clip.embed import EmbeddedWith, embed_shards
from laion_assets.clip.identity import files_identity
from laion_assets.defs import checks, pools
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.layout import (
    EMBEDDINGS,
    IMAGE_SHARDS,
)
from laion_assets.settings import Settings
from laion_assets.tables import rows_in
from resources.clip import ClipModelResource
from resources.lake import LakeResource

ASSET = Asset(
    EMBEDDINGS,
    group=EMBEDDINGS,
    revision=3,
    checks=("vectors_sound", "funnel_adds_up"),
    pool=pools.EMBED,
)


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(
            settings,
            segments,
            versioned=[files_identity(settings.clip), settings.clip.precision],
        ),
        deps=[IMAGE_SHARDS],
        kinds={"torch", "numpy"},
        description=__doc__,
    )
    @retrying_transient
    def embeddings(
        context: dg.AssetExecutionContext, lake: LakeResource, clip: ClipModelResource
    ) -> dg.MaterializeResult:
        options, model = clip.options(), clip.load()
        with publishing(
            context,
            lake.open(),
            upstream=[IMAGE_SHARDS],
            made_of={"model": model.version, "precision": model.precision},
            options=options,
        ) as made:
            embedded = embed_shards(made.input(IMAGE_SHARDS), made.out, model, options)
            made.staging.counts = [embedded.counts]
            made.staging.metadata = embedded.metadata() | EmbeddedWith.of(model).model_dump()
            rows = rows_in(*made.rows)
            made.require(
                checks.vectors_sound(made.rows),
                checks.funnel_adds_up(embedded.counts, rows, made.kept(IMAGE_SHARDS)),
            )
        return made.result(preview=table_preview(made.rows, ["text", "width", "height"]))

    return embeddings
