"""Every embedded pair with its similarity and safety tag: scores are kept, nothing is dropped."""

from contextlib import suppress

import dagster as dg

from laion_assets import schemas
from laion_assets.clip.embed import EmbeddedWith
from laion_assets.clip.identity import UnknownModelError
from laion_assets.defs import checks
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import numbers_table, table_preview
from laion_assets.defs.publishing import Publication, key_of, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.filtering.figures import similarity_histogram, tags_and_categories
from laion_assets.filtering.plausible import counted
from laion_assets.filtering.score import (
    CATEGORIES,
    ScoredWith,
    kept_categories,
    score_segment,
    write_categories,
)
from laion_assets.filtering.similarities import Similarities
from laion_assets.lake import NotPublishedError
from laion_assets.layout import EMBEDDINGS, SCORED_PAIRS
from laion_assets.safety.prompts import Categories, Prompts, category_embeddings, load_prompts
from laion_assets.settings import Settings
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import SafetyResource

ASSET = Asset(
    SCORED_PAIRS,
    group="subset",
    revision=4,
    checks=("schema_exact", "rows_aligned", "tags_plausible"),
)


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(
            settings, segments, versioned=[load_prompts(settings.safety.prompts).digest]
        ),
        deps=[EMBEDDINGS],
        kinds={"numpy", "parquet"},
        description=__doc__,
    )
    @retrying_transient
    def scored_pairs(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        safety: SafetyResource,
    ) -> dg.MaterializeResult:
        store, prompts = lake.open(), load_prompts(safety.prompts)
        manifest = store.manifest(EMBEDDINGS, key_of(context))
        embedded = EmbeddedWith.recorded(manifest.metadata, EMBEDDINGS)
        with publishing(
            context,
            store,
            upstream=[EMBEDDINGS],
            made_of={"prompts": prompts.digest, "model": embedded.model_version},
        ) as made:
            source = made.input(EMBEDDINGS)
            categories = _kept(made, prompts, embedded) or _embedded(prompts, embedded, clip)
            rows = score_segment(source, made.out, categories)
            write_categories(made.out, categories)
            # They follow from model and prompts alone, but for rounding.
            made.staging.not_content = (CATEGORIES,)
            made.staging.metadata = ScoredWith.of(rows, prompts, categories, embedded).model_dump()
            parts = len(made.input_rows(EMBEDDINGS))
            counts = counted(made.out, "nsfw"), counted(made.out, "nsfw_category_1")
            made.require(
                checks.schema_exact(made.rows, schemas.SCORED, parts),
                checks.rows_aligned(made.rows, source),
                checks.tags_plausible(*counts, safety.plausible_share),
            )
            histogram = similarity_histogram(Similarities.read([made.out]))
            similarity = made.picture("similarity", histogram, "histogram of similarity")
        tags, categories_first = tags_and_categories(*counts)
        return made.result(
            similarity=similarity,
            safety_tags=numbers_table(tags),
            nearest_categories=numbers_table(categories_first),
            preview=table_preview(made.rows, ["text", "similarity", "nsfw"]),
        )

    return scored_pairs


def _kept(made: Publication, prompts: Prompts, embedded: EmbeddedWith) -> Categories | None:
    """The categories of the published partition, if these embeddings can be compared with them."""
    with suppress(NotPublishedError, UnknownModelError):
        scored = ScoredWith.recorded(made.manifest(SCORED_PAIRS).metadata, SCORED_PAIRS)
        before = made.earlier(CATEGORIES)
        return kept_categories(before, scored, prompts, embedded) if before else None
    return None


def _embedded(prompts: Prompts, embedded: EmbeddedWith, clip: ClipModelResource) -> Categories:
    model = clip.load()
    if not embedded.is_same(model.identity):
        raise dg.Failure(
            f"the embeddings are of another model, {embedded.title}, than the settings name, "
            f"{model.identity.title}, and categories can be compared with those of their own "
            "model only: materialize the embeddings again",
            allow_retries=False,
        )
    return category_embeddings(prompts, model)
