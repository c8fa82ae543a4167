"""The rows that the recipe takes, in the LAION-400M schema, with their embeddings beside them."""

import dagster as dg

from laion_assets import checks, schemas
from laion_assets.assets.making import key_of, materialized, publishing
from laion_assets.clip.thresholds import table_entry, threshold_for
from laion_assets.filtering.subset import take_subset
from laion_assets.metadata import table_preview
from laion_assets.settings import Settings
from laion_assets.versions import code_version
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import RecipeResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="subset",
        partitions_def=segments,
        deps=["scored_pairs", "embeddings"],
        code_version=code_version(1, settings.subset, table_entry(settings.clip.key)),
        check_specs=checks.check_specs("filtered_subset"),
        kinds={"parquet", "numpy"},
        description=__doc__,
    )
    def filtered_subset(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        recipe: RecipeResource,
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        threshold = threshold_for(clip.key, recipe)
        with publishing(
            context,
            store,
            key,
            upstream=["scored_pairs", "embeddings"],
            made_of={"threshold": str(threshold)},
            options=recipe,
        ) as staging:
            scored = store.published("scored_pairs", key)
            counts = take_subset(
                scored,
                store.published("embeddings", key),
                staging.path,
                recipe,
                threshold=threshold,
                log=context.log.info,
            )
            staging.counts = [counts]
            staging.metadata = {
                "recipe": f"{recipe.name} v{recipe.version}",
                "threshold": threshold,
                "model": clip.key,
            }
            kept_before = store.manifest("embeddings", key).stage("embeddings").kept
            rows = checks.rows_in(staging.path)
            checked = checks.require(
                checks.schema_exact(
                    "filtered_subset", staging.path, schemas.SUBSET, checks.parts_in(scored)
                ),
                checks.keys_unique("filtered_subset", staging.path, "SAMPLE_ID"),
                checks.rows_aligned("filtered_subset", staging.path, staging.path),
                checks.above_threshold(staging.path, threshold),
                checks.funnel_adds_up("filtered_subset", counts, rows, kept_before),
            )
        folder = store.folder("filtered_subset", key)
        return materialized(
            context,
            store,
            staging,
            key,
            checks=checked,
            extra={"preview": table_preview(folder, ["TEXT", "similarity", "NSFW", "URL"])},
        )

    return filtered_subset
