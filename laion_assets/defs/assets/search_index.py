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
from laion_assets.knn.merge import SegmentIndex, merge_indices, merged_segments
from laion_assets.knn.recall import recorded_recall
from laion_assets.lake import Lake
from laion_assets.layout import FILTERED_SUBSET, KNN_INDEX, SEARCH_INDEX, SegmentKey
from laion_assets.settings import Settings
from resources.lake import LakeResource
from resources.rules import IndexResource

ASSET = Asset(
    SEARCH_INDEX,
    group="index",
    revision=4,
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


def _wanted(store: Lake, before: Path | None) -> tuple[list[SegmentIndex], int]:
    """The published indices of segments, and their samples.

    Only the manifests of those are read that were published since the index before was made.
    """
    known = merged_segments(before) if before else {}
    wanted, rows = [], 0
    for key, token in store.versions(KNN_INDEX).items():
        assert key is not None, f"{KNN_INDEX} is by segment"
        merged = known.get(key)
        if merged and merged.token == token:
            wanted.append(SegmentIndex(key, merged.version, token))
            rows += merged.rows
        else:
            manifest = store.manifest(KNN_INDEX, key)
            wanted.append(SegmentIndex(key, manifest.data_version, token))
            rows += samples_of(manifest.metadata)
    return wanted, rows


def _linked(summary: IndexSummary) -> list[SegmentKey]:
    """The segments whose own files are in the index as they are."""
    return [run.segments[0].key for run in summary.runs if run.level == 0]


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

        before = _previous(store, context)
        wanted, rows = _wanted(store, before)
        made_of = {str(segment.key): segment.version for segment in wanted}
        with publishing(context, store, made_of=made_of, options=options) as made:
            used: dict[SegmentKey, Path] = {}

            def index_of(key: SegmentKey) -> Path:
                used[key] = store.whole(KNN_INDEX, key)
                return used[key]

            summary = merge_indices(
                wanted,
                index_of,
                made.out,
                options,
                subset_of,
                previous=before,
                is_whole=made.is_whole,
            )
            own = [used[key] for key in _linked(summary) if key in used]
            made.staging.linked_from = [*own, before] if before else own
            for key in sorted(used):
                if store.manifest(KNN_INDEX, key).data_version != made_of[str(key)]:
                    raise InputsChangedError(f"{KNN_INDEX} of {key} was replaced meanwhile")
            made.staging.metadata = summary.headline()
            # How vectors are shared out among files depends on the order in which segments came.
            made.staging.data_version = code_version(
                ASSET.revision, json.dumps(made_of, sort_keys=True)
            )
            made.require(
                checks.size_equal(made.out, rows),
                checks.recall(recorded_recall(summary), options),
                checks.codec_fits(made.out, options),
            )
        return made.result(**{"dagster/row_count": summary.n})

    return search_index
