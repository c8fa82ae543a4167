"""Trained, empty faiss indices whose codes all segments share; retrained when vectors drift."""

import dagster as dg

from laion_assets.defs import pools
from laion_assets.defs.declaration import Asset
from laion_assets.defs.publishing import publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.knn.codec import train_codec
from laion_assets.knn.subset import model_of_all
from laion_assets.layout import FILTERED_SUBSET, INDEX_CODEC
from laion_assets.settings import Settings
from resources.lake import LakeResource
from resources.rules import IndexResource

ASSET = Asset(INDEX_CODEC, group="index", revision=2, pool=pools.INDEX)


def build(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        # It is made of the subsets that are present, without depending on them: a new segment does
        # not make the codec stale, and with it all that it encoded. The check `codec_fits` does.
        **ASSET.arguments(settings, versioned=[settings.index]),
        kinds={"faiss"},
        description=__doc__,
    )
    @retrying_transient
    def index_codec(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        index: IndexResource,
    ) -> dg.MaterializeResult:
        store, options = lake.open(), index.options()
        keys = store.segments(FILTERED_SUBSET)
        made_of = {str(key): store.manifest(FILTERED_SUBSET, key).data_version for key in keys}
        with publishing(context, store, made_of=made_of, options=options) as made:
            subsets = {key: store.published(FILTERED_SUBSET, key) for key in keys}
            model = model_of_all(subsets)
            summary = train_codec([*subsets.values()], made.out, options, model=model)
            made.staging.metadata = {"segments": len(keys)} | summary.model_dump(mode="json")
        return made.result()

    return index_codec
