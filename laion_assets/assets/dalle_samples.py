"""Pictures drawn by a small DALL-E trained on the subset, ranked by CLIP.

Needs the optional extra `generation`. Nothing asks for it by itself: training takes its time.
"""

import dagster as dg

from laion_assets.assets.making import InputsChangedError, materialized, publishing
from laion_assets.assets.retries import tried_again
from laion_assets.automation import scheduling
from laion_assets.clip.weights_identity import weights_identity
from laion_assets.generation.extra import require_extra
from laion_assets.lake import Lake, NotPublishedError
from laion_assets.metadata import numbers_table, picture
from laion_assets.settings import Settings
from laion_assets.versions import code_version
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import GenerationResource

POOL = "generation"
_MADE_OF = ("filtered_subset", "image_shards")


def _inputs(store: Lake) -> dict[str, str]:
    """The data versions of every segment that has a subset, by asset and segment."""
    return {
        f"{asset} {key}": store.manifest(asset, key).data_version
        for key in store.segments("filtered_subset")
        for asset in _MADE_OF
    }


def build(settings: Settings) -> dg.AssetsDefinition:
    options = settings.generation

    @dg.asset(
        group_name="generation",
        deps=list(_MADE_OF),
        code_version=code_version(
            2,
            options,
            weights_identity(settings.clip),
            leave_out=options.NOT_IN_VERSION,
        ),
        pool=POOL,
        kinds={"torch"},
        description=__doc__,
        **scheduling(settings, "dalle_samples"),
    )
    @tried_again
    def dalle_samples(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        generation: GenerationResource,
    ) -> dg.MaterializeResult:
        require_extra()
        from laion_assets.generation.dalle import make_samples
        from laion_assets.generation.pairs import find_shards
        from laion_assets.generation.report import caption_picture

        store, model = lake.open(), clip.load()
        made_of = _inputs(store)
        if not made_of:
            raise NotPublishedError("no segment's filtered_subset has been materialized")
        with publishing(
            context,
            store,
            made_of={**made_of, "model": model.version},
            options=generation,
            leave_out=generation.NOT_IN_VERSION,
        ) as staging:
            shards = [
                shard
                for key in store.segments("filtered_subset")
                for shard in find_shards(
                    store.published("filtered_subset", key), store.published("image_shards", key)
                )
            ]
            evaluation = make_samples(shards, staging.path, generation, model, log=context.log.info)
            staging.metadata = evaluation.headline() | {"model": model.key}
            if _inputs(store) != made_of:
                raise InputsChangedError("a segment was made anew meanwhile: make it again")
        folder = store.folder("dalle_samples")
        shown = {
            path.stem: picture(path.read_bytes(), path.stem)
            for path in sorted(folder.glob("*.png"))
        }
        shown |= {
            f"caption {number}": picture(
                (folder / caption_picture(number)).read_bytes(), f"samples for: {caption}"
            )
            for number, caption in enumerate(evaluation.captions)
        }
        tables = {
            "similarity": numbers_table(evaluation.similarity_table()),
            "trainings": numbers_table(evaluation.runs_table()),
        }
        return materialized(context, store, staging, extra={**shown, **tables})

    return dalle_samples
