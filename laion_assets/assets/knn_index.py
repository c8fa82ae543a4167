"""faiss indices over the segment's subset, image and text, with ids."""

import dagster as dg

from laion_assets import checks
from laion_assets.assets.making import key_of, materialized, publishing
from laion_assets.knn.build import build_index
from laion_assets.settings import Settings
from laion_assets.versions import code_version
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import IndexResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="index",
        partitions_def=segments,
        deps=["filtered_subset"],
        code_version=code_version(1, settings.index),
        check_specs=checks.check_specs("knn_index"),
        kinds={"faiss"},
        description=__doc__,
    )
    def knn_index(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        index: IndexResource,
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        with publishing(
            context, store, key, upstream=["filtered_subset"], options=index
        ) as staging:
            subset = store.published("filtered_subset", key)
            summary = build_index(
                subset, staging.path, index, model_key=clip.key, log=context.log.info
            )
            staging.metadata = summary.to_json()
            kept = store.manifest("filtered_subset", key).stage("subset").kept
            checked = checks.require(
                checks.size_equal("knn_index", staging.path, kept),
                checks.recall("knn_index", staging.path, [subset], index),
            )
        return materialized(context, store, staging, key, checks=checked)

    return knn_index
