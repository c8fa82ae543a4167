"""Every embedded pair with its similarity, safety tag and heads' scores: nothing is dropped."""

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
from laion_assets.filtering.figures import score_sheets, similarity_histogram, tags_and_categories
from laion_assets.filtering.plausible import counted
from laion_assets.filtering.score import (
    CATEGORIES,
    Earlier,
    ScoredWith,
    kept_categories,
    score_segment,
    write_categories,
)
from laion_assets.filtering.similarities import Similarities
from laion_assets.heads.head import load_head
from laion_assets.heads.score import refuse_other_model, scorers
from laion_assets.lake import NotPublishedError
from laion_assets.layout import EMBEDDINGS, IMAGE_SHARDS, SCORED_PAIRS
from laion_assets.lookup.find import MADE_OF
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
        **ASSET.arguments(settings, segments, versioned=_versioned(settings)),
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
        heads = scorers(settings.heads)
        refuse_other_model(heads, embedded)
        of_heads = {f"head {scorer.name}": scorer.head.digest for scorer in heads}
        with publishing(
            context,
            store,
            upstream=[EMBEDDINGS],
            made_of={"prompts": prompts.digest, "model": embedded.model_version, **of_heads},
        ) as made:
            source = made.input(EMBEDDINGS)
            earlier, kept = _earlier(made, prompts, embedded)
            categories = kept or _embedded(prompts, embedded, clip)
            rows = score_segment(source, made.out, categories, heads, earlier)
            write_categories(made.out, categories)
            # They follow from model and prompts alone, but for rounding.
            made.staging.not_content = (CATEGORIES,)
            made.staging.metadata = ScoredWith.of(
                rows, prompts, categories, embedded, heads
            ).model_dump()
            parts = len(made.input_rows(EMBEDDINGS))
            schema = schemas.with_scores(schemas.SCORED, [scorer.column for scorer in heads])
            counts = counted(made.out, "nsfw"), counted(made.out, "nsfw_category_1")
            made.require(
                checks.schema_exact(made.rows, schema, parts),
                checks.rows_aligned(made.rows, source),
                checks.tags_plausible(*counts, safety.plausible_share),
            )
            histogram = similarity_histogram(Similarities.read([made.out]))
            similarity = made.picture("similarity", histogram, "histogram of similarity")
            sheets = score_sheets(
                made.out,
                store.folder(IMAGE_SHARDS, made.key),
                [scorer.column for scorer in heads],
            )
            ends = {
                column: made.picture(column, image, f"lowest and highest {column}")
                for column, image in sheets.items()
            }
        tags, categories_first = tags_and_categories(*counts)
        return made.result(
            similarity=similarity,
            **ends,
            safety_tags=numbers_table(tags),
            nearest_categories=numbers_table(categories_first),
            preview=table_preview(made.rows, ["text", "similarity", "nsfw"]),
        )

    return scored_pairs


def _versioned(settings: Settings) -> list[str]:
    """Digests of what decides the scores besides the embeddings."""
    heads = (load_head(options.file).digest for _, options in sorted(settings.heads.items()))
    return [
        load_prompts(settings.safety.prompts).digest,
        *(f"{name} {digest}" for name, digest in zip(sorted(settings.heads), heads, strict=True)),
    ]


def _earlier(
    made: Publication, prompts: Prompts, embedded: EmbeddedWith
) -> tuple[Earlier | None, Categories | None]:
    """What may be taken over of the published partition: its scores, if nothing but the heads may
    have changed since, and its categories, if these embeddings can be compared with them."""
    with suppress(NotPublishedError, UnknownModelError):
        manifest = made.manifest(SCORED_PAIRS)
        scored = ScoredWith.recorded(manifest.metadata, SCORED_PAIRS)
        before = (
            manifest.metadata.get(MADE_OF),
            manifest.code_version.partition("-")[0],
            scored.prompts_digest,
            scored.model_version,
        )
        now = (
            # An image that was refetched has another vector and the same SAMPLE_ID.
            {EMBEDDINGS: made.manifest(EMBEDDINGS).data_version},
            str(ASSET.revision),
            prompts.digest,
            embedded.model_version,
        )
        folder = made.earlier("*" if before == now else CATEGORIES)
        if folder:
            earlier = Earlier(folder, scored.heads) if before == now else None
            return earlier, kept_categories(folder, scored, prompts, embedded)
    return None, None


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
