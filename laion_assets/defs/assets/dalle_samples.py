"""Pictures drawn by a small DALL-E trained on the subset, ranked by CLIP.

Needs the optional extra `generation`. Never built automatically, because training is slow.
"""

import json
import logging
from typing import TYPE_CHECKING, Any

import dagster as dg

from laion_assets.clip.identity import files_identity
from laion_assets.defs import pools
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import numbers_table
from laion_assets.defs.publishing import (
    Publication,
    are_still,
    named_versions,
    publishing,
    reading,
    versions_of,
)
from laion_assets.defs.retries import retrying_transient
from laion_assets.files import write_json
from laion_assets.generation import require_extra
from laion_assets.lake import Lake, NotPublishedError
from laion_assets.layout import DALLE_SAMPLES, FILTERED_SUBSET, IMAGE_SHARDS, SegmentKey
from laion_assets.settings import Settings
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import GenerationResource

if TYPE_CHECKING:
    from laion_assets.generation.evaluation import Evaluation

logger = logging.getLogger(__name__)

ASSET = Asset(DALLE_SAMPLES, group="generation", revision=3, pool=pools.GENERATION)

_MADE_OF = (FILTERED_SUBSET, IMAGE_SHARDS)

SEGMENTS = "segments.json"
"""The data versions of what it is made of, by segment and asset. A lake that grows has another
segment before a long training has ended: the samples are of those that there were, and a run that
goes on finds here which these are."""

Versions = dict[str, dict[str, str]]


def _segments(store: Lake) -> Versions:
    """What an earlier run began with, if all of it is present unchanged; else what is present."""
    begun = store.unfinished(DALLE_SAMPLES, None, SEGMENTS)
    if begun is not None:
        made_of: Versions = json.loads(begun)
        if made_of and are_still(store, _MADE_OF, made_of):
            return made_of
    keys = store.segments(FILTERED_SUBSET)
    found = versions_of(store, _MADE_OF, keys)
    if left_out := [str(key) for key in keys if str(key) not in found]:
        logger.warning(f"left out, as they have no {IMAGE_SHARDS}: {', '.join(left_out)}")
    if not found:
        raise NotPublishedError(f"no segment has both {' and '.join(_MADE_OF)}")
    return found


def build(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        **ASSET.arguments(settings, versioned=[settings.generation, files_identity(settings.clip)]),
        deps=list(_MADE_OF),
        kinds={"torch"},
        description=__doc__,
    )
    @retrying_transient
    def dalle_samples(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        generation: GenerationResource,
    ) -> dg.MaterializeResult:
        require_extra()
        from laion_assets.generation.autoencoder import weights_digest, weights_folder
        from laion_assets.generation.dalle import make_samples
        from laion_assets.generation.pairs import find_shards

        store, options, model = lake.open(), generation.options(), clip.load()
        segments = _segments(store)
        made_of = named_versions(segments)
        made_of["model"] = model.version
        if options.vq_weights:
            made_of["vq_weights"] = weights_digest(weights_folder(options.vq_weights))
        with publishing(context, store, made_of=made_of, options=options) as made:
            write_json(made.out / SEGMENTS, segments)
            with reading(store, _MADE_OF, segments):
                shards = [
                    shard
                    for key in map(SegmentKey.parse, segments)
                    for shard in find_shards(
                        store.published(FILTERED_SUBSET, key),
                        store.published(IMAGE_SHARDS, key),
                        segments[str(key)][IMAGE_SHARDS],
                    )
                ]
                evaluation = make_samples(shards, made.out, options, model)
            made.staging.metadata = evaluation.headline() | {"model": model.key}
        return made.result(**_shown(made, evaluation))

    return dalle_samples


def _shown(made: Publication, evaluation: "Evaluation") -> dict[str, Any]:
    """Pictures and tables that a person looks at."""
    from laion_assets.generation.report import caption_picture

    shown: dict[str, Any] = {path.stem: made.view(path) for path in sorted(made.out.glob("*.png"))}
    for number, caption in enumerate(evaluation.captions):
        drawn = made.out / caption_picture(number)
        shown[f"caption {number}"] = made.view(drawn, f"samples for: {caption}")
    shown["similarity"] = numbers_table(evaluation.similarity_table())
    if judged := evaluation.judged_table():
        shown["judged"] = numbers_table(judged)
    if compared := evaluation.guidance_table():
        shown["guidance"] = numbers_table(compared)
    shown["trainings"] = numbers_table(evaluation.runs_table())
    return shown
