"""One image and one text index over all segments that there are."""

import json
from pathlib import Path

import dagster as dg

from laion_assets.defs import checks
from laion_assets.defs.assets.lists import INDEX_POOL
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.publishing import InputsChangedError, materialized, publishing
from laion_assets.defs.retries import tried_again
from laion_assets.knn.files import IndexSummary
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.lake import Lake
from laion_assets.segments import SegmentKey
from laion_assets.settings import Settings
from resources.lake import LakeResource
from resources.rules import IndexResource

_REVISION = 2


def _previous(store: Lake, context: dg.AssetExecutionContext) -> Path | None:
    """The index that is there, if this code can go on from it."""
    if not store.has("search_index"):
        return None
    made_by = store.manifest("search_index").code_version
    if made_by.partition("-")[0] != str(_REVISION):
        context.log.info(f"the index that is there is of revision {made_by}: made anew")
        return None
    return store.folder("search_index")


def _linked(summary: IndexSummary) -> set[SegmentKey]:
    """The segments whose own files may be in the index as they are."""
    return {
        SegmentKey(run.segments[0].crawl, run.segments[0].segment)
        for run in summary.runs
        if run.level == 0
    }


def build(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        group_name="index",
        deps=["knn_index"],
        code_version=code_version(_REVISION, settings.index),
        check_specs=checks.check_specs("search_index"),
        pool=INDEX_POOL,
        kinds={"faiss"},
        description=__doc__,
        **scheduling(settings, "search_index"),
    )
    @tried_again
    def search_index(
        context: dg.AssetExecutionContext, lake: LakeResource, index: IndexResource
    ) -> dg.MaterializeResult:
        store = lake.open()

        def subset_of(crawl: str, segment: str) -> Path:
            return store.published("filtered_subset", SegmentKey(crawl, segment))

        keys = store.segments("knn_index")
        manifests = {key: store.manifest("knn_index", key) for key in keys}
        made_of = {str(key): manifest.data_version for key, manifest in manifests.items()}
        with publishing(context, store, made_of=made_of, options=index) as staging:
            before = _previous(store, context)
            summary = merge_indices(
                [
                    SegmentIndex(
                        key.crawl, key.segment, store.folder("knn_index", key), made_of[str(key)]
                    )
                    for key in keys
                ],
                staging.path,
                index,
                subset_of,
                previous=before,
            )
            new = _linked(summary)
            staging.linked_from = [store.folder("knn_index", key) for key in keys if key in new]
            if before:
                staging.linked_from.append(before)
            for key in sorted(new):
                if store.manifest("knn_index", key).data_version != made_of[str(key)]:
                    raise InputsChangedError(f"knn_index of {key} was made anew meanwhile")
            staging.metadata = summary.headline()
            # How vectors are shared out among files depends on the order in which segments came.
            staging.data_version = code_version(_REVISION, json.dumps(made_of, sort_keys=True))
            rows = sum(int(manifest.metadata["n"]) for manifest in manifests.values())
            checked = checks.require(
                checks.size_equal("search_index", staging.path, rows),
                checks.recall(
                    "search_index",
                    staging.path,
                    subset_of,
                    index,
                    own_queries=False,
                ),
                checks.codec_fits("search_index", staging.path, index),
            )
        return materialized(context, store, staging, checks=checked)

    return search_index
