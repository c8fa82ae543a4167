"""CLIP embeddings of images and texts, row-aligned with their metadata."""

from contextlib import suppress
from pathlib import Path

import dagster as dg

from laion_assets.clip.embed import (
    EmbeddedWith,
    Model,
    OtherModelError,
    UnloadedModel,
    computed_in,
    embed_shards,
)
from laion_assets.clip.identity import UnknownModelError, files_identity
from laion_assets.defs import checks, pools
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import table_preview
from laion_assets.defs.publishing import Publication, key_of, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.lake import Lake, Manifest, NotPublishedError
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
        store = lake.open()
        with suppress(OtherModelError):
            return _embed(context, store, clip, _model_before(context, store, clip))
        return _embed(context, store, clip, clip.load())

    return embeddings


def _model_before(context: dg.AssetExecutionContext, store: Lake, clip: ClipModelResource) -> Model:
    """The model of the published partition, not loaded, if the same settings and weights made
    that; else the settings' model."""
    with suppress(NotPublishedError, UnknownModelError):
        manifest = store.manifest(EMBEDDINGS, key_of(context))
        if _same_code(context, manifest):
            known = EmbeddedWith.recorded(manifest.metadata, EMBEDDINGS)
            # Earlier code did not record it, and computed in fp32 where a CPU had no bf16.
            if known.computed_in == computed_in(clip.options()):
                return UnloadedModel(known, clip.load)
    return clip.load()


def _embed(
    context: dg.AssetExecutionContext, store: Lake, clip: ClipModelResource, model: Model
) -> dg.MaterializeResult:
    options = clip.options()
    with publishing(
        context,
        store,
        upstream=[IMAGE_SHARDS],
        made_of={"model": model.identity.model_version},
        options=options,
    ) as made:
        embedded = embed_shards(
            made.input(IMAGE_SHARDS),
            made.out,
            model,
            options,
            earlier=_earlier(context, made, model),
        )
        made.staging.counts = [embedded.counts]
        made.staging.metadata = embedded.metadata() | EmbeddedWith.of(model).recorded_as()
        rows = rows_in(*made.rows)
        made.require(
            checks.vectors_sound(made.rows),
            checks.funnel_adds_up(embedded.counts, rows, made.kept(IMAGE_SHARDS)),
        )
    return made.result(preview=table_preview(made.rows, ["text", "width", "height"]))


def _earlier(context: dg.AssetExecutionContext, made: Publication, model: Model) -> Path | None:
    """The published partition, if the same model and code made it."""
    with suppress(NotPublishedError, UnknownModelError):
        manifest = made.manifest(EMBEDDINGS)
        published = EmbeddedWith.recorded(manifest.metadata, EMBEDDINGS)
        if published.is_of(model) and _same_code(context, manifest):
            return made.earlier()
    return None


def _same_code(context: dg.AssetExecutionContext, manifest: Manifest) -> bool:
    """Whether the partition was made by this code, with this precision and these weights."""
    version = context.assets_def.code_versions_by_key[context.asset_key]
    return bool(manifest.code_version == version)
