"""faiss indices over the segment's subset, image and text, with ids."""

import dagster as dg

from laion_assets.defs import checks
from laion_assets.defs.declaration import Asset
from laion_assets.defs.publishing import publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.knn.build import build_index, uses_codec
from laion_assets.knn.codec import Codec
from laion_assets.knn.recall import measure_recall
from laion_assets.knn.subset import model_of
from laion_assets.layout import FILTERED_SUBSET, INDEX_CODEC, KNN_INDEX
from laion_assets.settings import Settings
from resources.lake import LakeResource
from resources.rules import IndexResource

ASSET = Asset(KNN_INDEX, group="index", revision=4, checks=("size_equal", "recall", "codec_fits"))


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(settings, segments, versioned=[settings.index]),
        deps=[FILTERED_SUBSET, INDEX_CODEC],
        kinds={"faiss"},
        description=__doc__,
    )
    @retrying_transient
    def knn_index(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        index: IndexResource,
    ) -> dg.MaterializeResult:
        store, options = lake.open(), index.options()
        codec = [INDEX_CODEC] if uses_codec(options, store.has(INDEX_CODEC)) else []
        with publishing(
            context, store, upstream=[FILTERED_SUBSET, *codec], options=options
        ) as made:
            subset = made.input(FILTERED_SUBSET)
            made.staging.linked_from = [made.input(asset) for asset in codec]
            summary = build_index(
                subset,
                made.out,
                options,
                model=model_of(subset),
                codec=Codec.open(made.input(INDEX_CODEC)) if codec else None,
            )
            made.staging.metadata = summary.headline()
            made.require(
                checks.size_equal(made.out, made.kept(FILTERED_SUBSET)),
                checks.recall(measure_recall(made.out, subset, options), options),
                checks.codec_fits(made.out, options),
            )
        return made.result()

    return knn_index
