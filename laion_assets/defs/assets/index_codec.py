"""Trained, empty faiss indices whose codes all segments share; made once, and again on drift."""

import dagster as dg

from laion_assets.defs.assets.lists import INDEX_POOL
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.publishing import materialized, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.knn.codec import train_codec
from laion_assets.settings import Settings
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import IndexResource


def build(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="index",
        # Of the subsets that are there, without depending on them: a segment that lands does not
        # make the codec stale, and with it all that it encoded. The check `codec_fits` does that.
        code_version=code_version(1, settings.index),
        pool=INDEX_POOL,
        kinds={"faiss"},
        description=__doc__,
        **scheduling(settings, "index_codec"),
    )
    @retrying_transient
    def index_codec(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        index: IndexResource,
    ) -> dg.MaterializeResult:
        store = lake.open()
        keys = store.segments("filtered_subset")
        made_of = {str(key): store.manifest("filtered_subset", key).data_version for key in keys}
        with publishing(context, store, made_of=made_of, options=index) as staging:
            summary = train_codec(
                [store.published("filtered_subset", key) for key in keys],
                staging.path,
                index,
                model_key=clip.key,
            )
            staging.metadata = {"segments": len(keys)} | summary.model_dump(mode="json")
        return materialized(context, store, staging)

    return index_codec
