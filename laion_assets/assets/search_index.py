"""One image and one text index over all segments that there are."""

import dagster as dg

from laion_assets import checks
from laion_assets.assets.making import materialized, publishing
from laion_assets.automation import follow_upstream
from laion_assets.knn.merge import merge_indices
from laion_assets.settings import Settings
from laion_assets.versions import code_version
from resources.lake import LakeResource
from resources.rules import IndexResource


def build(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="index",
        deps=["knn_index"],
        code_version=code_version(1, settings.index),
        check_specs=checks.check_specs("search_index"),
        automation_condition=follow_upstream(),
        kinds={"faiss"},
        description=__doc__,
    )
    def search_index(
        context: dg.AssetExecutionContext, lake: LakeResource, index: IndexResource
    ) -> dg.MaterializeResult:
        store = lake.open()
        keys = store.segments("knn_index")
        made_of = {str(key): store.manifest("knn_index", key).data_version for key in keys}
        with publishing(context, store, made_of=made_of, options=index) as staging:
            summary = merge_indices(
                [(key.crawl, key.segment, store.folder("knn_index", key)) for key in keys],
                staging.path,
                log=context.log.info,
            )
            staging.metadata = {"segments": len(keys)} | summary.to_json()
            kept = sum(store.manifest("filtered_subset", k).stage("subset").kept for k in keys)
            subsets = [store.published("filtered_subset", key) for key in keys]
            checked = checks.require(
                checks.size_equal("search_index", staging.path, kept),
                checks.recall("search_index", staging.path, subsets, index),
            )
        return materialized(context, store, staging, checks=checked)

    return search_index
