"""The rows that the recipe takes, in the LAION-400M schema, with their embeddings beside them."""

import dagster as dg

from laion_assets import checks, schemas
from laion_assets.assets.making import data_versions, key_of, materialized, publishing
from laion_assets.clip.thresholds import threshold_for
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
        code_version=code_version(1, settings.subset),
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
        made_of = data_versions(store, ["scored_pairs", "embeddings"], key)
        threshold = threshold_for(clip.key, recipe)
        with publishing(context, store, made_of | {"threshold": str(threshold)}, key) as staging:
            staging.counts = [
                take_subset(
                    store.published("scored_pairs", key),
                    store.published("embeddings", key),
                    staging.path,
                    recipe,
                    threshold=threshold,
                    log=context.log.info,
                )
            ]
            staging.metadata = {
                "recipe": f"{recipe.name} v{recipe.version}",
                "threshold": threshold,
                "model": clip.key,
            }
        folder = store.folder("filtered_subset", key)
        counts = staging.published.stage("subset")
        kept_before = store.manifest("embeddings", key).stage("embeddings").kept
        return materialized(
            context,
            store,
            staging,
            key,
            checks=[
                checks.schema_exact("filtered_subset", folder, schemas.SUBSET),
                checks.keys_unique("filtered_subset", folder, "SAMPLE_ID"),
                checks.rows_aligned("filtered_subset", folder, folder),
                checks.above_threshold(folder, threshold),
                checks.funnel_adds_up(
                    "filtered_subset", counts, checks.rows_in(folder), kept_before
                ),
            ],
            extra={"preview": table_preview(folder, ["TEXT", "similarity", "NSFW", "URL"])},
        )

    return filtered_subset
