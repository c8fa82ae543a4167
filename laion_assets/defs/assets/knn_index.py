"""faiss indices over the segment's subset, image and text, with ids."""

import dagster as dg

from laion_assets.defs import checks
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.publishing import key_of, materialized, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.knn.build import build_index, uses_codec
from laion_assets.knn.codec import Codec
from laion_assets.settings import Settings
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import IndexResource


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="index",
        partitions_def=segments,
        deps=["filtered_subset", "index_codec"],
        code_version=code_version(2, settings.index),
        check_specs=checks.check_specs("knn_index"),
        kinds={"faiss"},
        description=__doc__,
        **scheduling(settings, "knn_index"),
    )
    @retrying_transient
    def knn_index(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        index: IndexResource,
    ) -> dg.MaterializeResult:
        key, store = key_of(context), lake.open()
        shared = ["index_codec"] if uses_codec(index, store.has("index_codec")) else []
        with publishing(
            context, store, key, upstream=["filtered_subset"], shared=shared, options=index
        ) as staging:
            subset = store.published("filtered_subset", key)
            codecs = [store.published(asset) for asset in shared]
            staging.linked_from = codecs
            summary = build_index(
                subset,
                staging.path,
                index,
                model_key=clip.key,
                codec=Codec.open(codecs[0]) if codecs else None,
            )
            staging.metadata = summary.headline()
            kept = store.manifest("filtered_subset", key).stage("subset").kept
            checked = checks.require(
                checks.size_equal("knn_index", staging.path, kept),
                checks.recall(
                    "knn_index", staging.path, lambda *_: subset, index, own_queries=True
                ),
                checks.codec_fits("knn_index", staging.path, index),
            )
        return materialized(context, store, staging, key, checks=checked)

    return knn_index
