"""The rows that the recipe takes, in the LAION-400M schema, with their embeddings beside them."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from laion_assets import schemas
from laion_assets.clip.thresholds import table_entry
from laion_assets.defs import checks
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.jobs import subset_asset
from laion_assets.defs.metadata import numbers_table, picture, table_preview
from laion_assets.defs.publishing import key_of, materialized, publishing
from laion_assets.defs.retries import tried_again
from laion_assets.filtering.figures import kept_by_tag, similarity_histogram, threshold_sheets
from laion_assets.filtering.recipe import Recipe
from laion_assets.filtering.subset import take_subset
from laion_assets.lake import Lake
from laion_assets.segments import SegmentKey
from laion_assets.settings import Settings
from resources.lake import LakeResource
from resources.rules import RecipeResource

UPSTREAM = ("scored_pairs", "embeddings")


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    """The main recipe's subset, which is indexed and searched."""

    @dg.asset(
        group_name="subset",
        partitions_def=segments,
        deps=UPSTREAM,
        code_version=_version(settings.subset, settings),
        check_specs=checks.check_specs("filtered_subset"),
        kinds={"parquet", "numpy"},
        description=__doc__,
        **scheduling(settings, "filtered_subset"),
    )
    @tried_again
    def filtered_subset(
        context: dg.AssetExecutionContext, lake: LakeResource, recipe: RecipeResource
    ) -> dg.MaterializeResult:
        return _take(context, lake.open(), recipe)

    return filtered_subset


def build_further(
    segments: dg.MultiPartitionsDefinition, settings: Settings
) -> list[dg.AssetsDefinition]:
    """An asset for each further recipe, of the same scores and embeddings."""
    return [
        _further(segments, settings, subset_asset(name), recipe)
        for name, recipe in settings.subsets.items()
    ]


def _further(
    segments: dg.MultiPartitionsDefinition, settings: Settings, name: str, recipe: Recipe
) -> dg.AssetsDefinition:
    @dg.asset(
        name=name,
        group_name="subset",
        partitions_def=segments,
        deps=UPSTREAM,
        code_version=_version(recipe, settings),
        check_specs=checks.check_specs(name, like="filtered_subset"),
        kinds={"parquet", "numpy"},
        description=f"The rows that the recipe {recipe.title} takes. {recipe.about}".strip(),
        **scheduling(settings, name),
    )
    @tried_again
    def further(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        return _take(context, lake.open(), recipe)

    return further


def _version(recipe: Recipe, settings: Settings) -> str:
    return code_version(2, recipe, table_entry(settings.clip.key), leave_out=Recipe.NOT_IN_VERSION)


def _take(context: dg.AssetExecutionContext, store: Lake, recipe: Recipe) -> dg.MaterializeResult:
    key, name = key_of(context), context.asset_key.path[-1]
    # The model that the similarities are of, whatever the settings name by now.
    model = store.manifest("embeddings", key).metadata["model"]
    threshold = recipe.threshold_of(model)
    with publishing(
        context,
        store,
        key,
        upstream=UPSTREAM,
        made_of={"threshold": str(threshold)},
        options=recipe,
        leave_out=recipe.NOT_IN_VERSION,
    ) as staging:
        scored = store.published("scored_pairs", key)
        embeddings = store.published("embeddings", key)
        counts = take_subset(scored, embeddings, staging.path, recipe, threshold=threshold)
        staging.counts = [counts]
        staging.metadata = {"recipe": recipe.title, "threshold": threshold, "model": model}
        kept_before = store.manifest("embeddings", key).stage("embeddings").kept
        rows = checks.rows_in(staging.path)
        checked = checks.require(
            checks.schema_exact(name, staging.path, schemas.SUBSET, checks.parts_in(scored)),
            checks.keys_unique(name, staging.path, "SAMPLE_ID"),
            checks.rows_aligned(name, staging.path, staging.path),
            checks.above_threshold(name, staging.path, threshold),
            checks.funnel_adds_up(name, counts, rows, kept_before),
        )
    return materialized(
        context,
        store,
        staging,
        key,
        checks=checked,
        extra=_shown(store, key, name, recipe, threshold),
    )


def _shown(
    store: Lake, key: SegmentKey, name: str, recipe: Recipe, threshold: float
) -> Mapping[str, Any]:
    scored, shards = store.published("scored_pairs", key), store.folder("image_shards", key)
    kept, dropped = threshold_sheets(scored, shards, recipe, threshold)
    return {
        "similarity": picture(
            similarity_histogram(scored, threshold), "histogram of similarity with the threshold"
        ),
        "kept_just_above": picture(kept, "the least similar of the kept, with their similarity"),
        "dropped_just_below": picture(dropped, "the most similar of the dropped"),
        "safety_tags": numbers_table(kept_by_tag(scored, store.folder(name, key))),
        "preview": table_preview(
            store.folder(name, key), ["TEXT", "similarity", "NSFW", "URL"], "part-*.parquet"
        ),
    }
