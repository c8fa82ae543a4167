"""Every embedded pair with its similarity and safety tag: scores are kept, nothing is dropped."""

import dagster as dg

from laion_assets import checks, schemas
from laion_assets.assets.making import key_of, materialized, publishing
from laion_assets.clip.thresholds import threshold_for
from laion_assets.filtering.figures import similarity_histogram
from laion_assets.filtering.score import score_segment
from laion_assets.metadata import picture, table_preview
from laion_assets.safety.prompts import category_embeddings, load_prompts
from laion_assets.settings import Settings
from laion_assets.versions import code_version
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import RecipeResource, SafetyResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="subset",
        partitions_def=segments,
        deps=["embeddings"],
        code_version=code_version(1, load_prompts(settings.safety.prompts).digest),
        check_specs=checks.check_specs("scored_pairs"),
        kinds={"numpy", "parquet"},
        description=__doc__,
    )
    def scored_pairs(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        safety: SafetyResource,
        recipe: RecipeResource,
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        source = store.published("embeddings", key)
        prompts, model = load_prompts(safety.prompts), clip.load()
        with publishing(
            context,
            store,
            key,
            upstream=["embeddings"],
            made_of={"prompts": prompts.digest, "model": model.version},
        ) as staging:
            categories = category_embeddings(prompts, model)
            rows = score_segment(source, staging.path, categories, log=context.log.info)
            staging.metadata = {"rows": rows, "prompts": f"{prompts.name} v{prompts.version}"}
            checked = checks.require(
                checks.schema_exact(
                    "scored_pairs",
                    staging.path,
                    schemas.SCORED,
                    checks.parts_in(source / "metadata", "metadata_*.parquet"),
                ),
                checks.rows_aligned("scored_pairs", staging.path, source),
            )
        folder = store.folder("scored_pairs", key)
        histogram = similarity_histogram(folder, threshold_for(clip.key, recipe))
        return materialized(
            context,
            store,
            staging,
            key,
            checks=checked,
            extra={
                "similarity": picture(histogram, "histogram of similarity"),
                "preview": table_preview(folder, ["text", "similarity", "nsfw"]),
            },
        )

    return scored_pairs
