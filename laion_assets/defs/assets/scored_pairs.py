"""Every embedded pair with its similarity and safety tag: scores are kept, nothing is dropped."""

import dagster as dg

from laion_assets import schemas
from laion_assets.defs import checks
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import numbers_table, picture, table_preview
from laion_assets.defs.publishing import key_of, materialized, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.filtering.figures import similarity_histogram, tags_and_categories
from laion_assets.filtering.score import score_segment
from laion_assets.safety.prompts import category_embeddings, load_prompts
from laion_assets.settings import Settings
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import SafetyResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="subset",
        partitions_def=segments,
        deps=["embeddings"],
        code_version=code_version(2, load_prompts(settings.safety.prompts).digest),
        check_specs=checks.check_specs("scored_pairs"),
        kinds={"numpy", "parquet"},
        description=__doc__,
        **scheduling(settings, "scored_pairs"),
    )
    @retrying_transient
    def scored_pairs(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        safety: SafetyResource,
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        source = store.published("embeddings", key)
        prompts, model = load_prompts(safety.prompts), clip.load()
        embedded_by = store.manifest("embeddings", key).metadata["model_version"]
        if embedded_by != model.version:
            raise dg.Failure(
                f"the embeddings are of another model ({embedded_by}) than the settings name "
                f"({model.version}), and categories can be compared with those of their own model "
                "only: make the embeddings again",
                allow_retries=False,
            )
        with publishing(
            context,
            store,
            key,
            upstream=["embeddings"],
            made_of={"prompts": prompts.digest, "model": model.version},
        ) as staging:
            categories = category_embeddings(prompts, model)
            rows = score_segment(source, staging.path, categories)
            staging.metadata = {
                "rows": rows,
                "prompts": f"{prompts.name} v{prompts.version}",
                "prompts_digest": prompts.digest,
                "words": categories.words.title,
                "model": model.key,
            }
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
        tags, categories_first = tags_and_categories(folder)
        return materialized(
            context,
            store,
            staging,
            key,
            checks=checked,
            extra={
                "similarity": picture(similarity_histogram(folder), "histogram of similarity"),
                "safety_tags": numbers_table(tags),
                "nearest_categories": numbers_table(categories_first),
                "preview": table_preview(folder, ["text", "similarity", "nsfw"]),
            },
        )

    return scored_pairs
