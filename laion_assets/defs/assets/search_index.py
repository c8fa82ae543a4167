"""One image and one text index over all segments that are present."""

import json
from pathlib import Path

import dagster as dg

from laion_assets.defs import checks, pools
from laion_assets.defs.code_version import code_version
from laion_assets.defs.declaration import Asset
from laion_assets.defs.publishing import InputsChangedError, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.knn.files import IndexSummary, samples_of
from laion_assets.knn.merge import SegmentIndex, merge_indices
from laion_assets.lake import Lake
from laion_assets.layout import FILTERED_SUBSET, KNN_INDEX, SEARCH_INDEX, SegmentKey
from laion_assets.settings import Settings
from resources.lake import LakeResource
from resources.rules import IndexResource

ASSET = Asset(
    SEARCH_INDEX,
    group="index",
    revision=2,
    checks=("size_equal", "recall", "codec_fits"),
    pool=pools.INDEX,
    aggregate=True,
    fresh=True,
)


def _previous(store: Lake, context: dg.AssetExecutionContext) -> Path | None:
    """The published index, if this code can go on from it."""
    if not store.has(SEARCH_INDEX):
        return None
    made_by = store.manifest(SEARCH_INDEX).code_version
    if made_by.partition("-")[0] != str(ASSET.revision):
        context.log.info(f"the published index is of revision {made_by}: rebuilt")
        return None
    return store.folder(SEARCH_INDEX)


def _linked(summary: IndexSummary) -> set[SegmentKey]:
    """The segments whose own files may be in the index as they are."""
    return {run.segments[0].key for run in summary.runs if run.level == 0}


def build(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(settings, versioned=[settings.index]),
        deps=[KNN_INDEX],
        kinds={"faiss"},
        description=__doc__,
    )
    @retrying_transient
    def search_index(
        context: dg.AssetExecutionContext, lake: LakeResource, index: IndexResource
    ) -> dg.MaterializeResult:
        store, options = lake.open(), index.options()

        def subset_of(key: SegmentKey) -> Path:
            return store.published(FILTERED_SUBSET, key)

        keys = store.segments(KNN_INDEX)
        manifests = {key: store.manifest(KNN_INDEX, key) for key in keys}
        made_of = {str(key): manifest.data_version for key, manifest in manifests.items()}
        with publishing(context, store, made_of=made_of, options=options) as made:
            before = _previous(store, context)
            summary = merge_indices(
                [
                    SegmentIndex(key, store.folder(KNN_INDEX, key), made_of[str(key)])
                    for key in keys
                ],
                made.out,
                options,
                subset_of,
                previous=before,
            )
            new = _linked(summary)
            linked_from = [store.folder(KNN_INDEX, key) for key in keys if key in new]
            made.staging.linked_from = [*linked_from, before] if before else linked_from
            for key in sorted(new):
                if store.manifest(KNN_INDEX, key).data_version != made_of[str(key)]:
                    raise InputsChangedError(f"{KNN_INDEX} of {key} was replaced meanwhile")
            made.staging.metadata = summary.headline()
            # How vectors are shared out among files depends on the order in which segments came.
            made.staging.data_version = code_version(
                ASSET.revision, json.dumps(made_of, sort_keys=True)
            )
            rows = sum(samples_of(manifest.metadata) for manifest in manifests.values())
            made.require(
                checks.size_equal(made.out, rows),
                checks.recall(made.out, subset_of, options, own_queries=False),
                checks.codec_fits(made.out, options),
            )
        return made.result(**{"dagster/row_count": summary.n})

    return search_index
