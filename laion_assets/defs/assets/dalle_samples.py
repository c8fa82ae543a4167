"""Pictures drawn by a small DALL-E trained on the subset, ranked by CLIP.

Needs the optional extra `generation`. Nothing asks for it by itself: training takes its time.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from laion_assets.clip.weights_identity import weights_identity
from laion_assets.defs.automation import scheduling
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import numbers_table, picture
from laion_assets.defs.publishing import InputsChangedError, materialized, publishing
from laion_assets.defs.retries import tried_again
from laion_assets.files import write_json
from laion_assets.generation import require_extra
from laion_assets.lake import Lake, NotPublishedError
from laion_assets.segments import SegmentKey
from laion_assets.settings import Settings
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import GenerationResource

logger = logging.getLogger(__name__)

POOL = "generation"
_MADE_OF = ("filtered_subset", "image_shards")


SEGMENTS = "segments.json"
"""The data versions of what it is made of, by segment and asset. A lake that grows has another
segment before a long training has ended: the samples are of those that there were, and a run that
goes on finds here which these are."""

Versions = dict[str, dict[str, str]]


def _versions(store: Lake, keys: Iterable[SegmentKey]) -> Versions:
    """Those of the segments that have all that is needed."""
    return {
        str(key): {asset: store.manifest(asset, key).data_version for asset in _MADE_OF}
        for key in keys
        if all(store.has(asset, key) for asset in _MADE_OF)
    }


def _segments(store: Lake) -> Versions:
    """What an earlier run began with, if that is all there as it was; else all there is now."""
    begun = store.unfinished("dalle_samples", None, SEGMENTS)
    if begun is not None:
        made_of: Versions = json.loads(begun)
        if made_of and _still(store, made_of):
            return made_of
    keys = store.segments("filtered_subset")
    found = _versions(store, keys)
    if left_out := [str(key) for key in keys if str(key) not in found]:
        logger.warning(f"left out, as they have no image_shards: {', '.join(left_out)}")
    if not found:
        raise NotPublishedError(f"no segment has both {' and '.join(_MADE_OF)}")
    return found


def _still(store: Lake, made_of: Versions) -> bool:
    return _versions(store, map(SegmentKey.parse, made_of)) == made_of


@contextmanager
def _kept(store: Lake, segments: Versions) -> Iterator[None]:
    """Raises :class:`InputsChangedError` if a segment was replaced in the block, whichever error
    that led to: what is read of two versions need not fit together."""
    message = "a segment was made anew meanwhile: make it again"
    try:
        yield
    except Exception as error:
        if not _still(store, segments):
            raise InputsChangedError(message) from error
        raise
    if not _still(store, segments):
        raise InputsChangedError(message)


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
        from laion_assets.generation.autoencoder import weights_digest
        from laion_assets.generation.dalle import make_samples
        from laion_assets.generation.pairs import find_shards
        from laion_assets.generation.report import caption_picture

        store, model = lake.open(), clip.load()
        segments = _segments(store)
        made_of = {
            f"{asset} {key}": version
            for key, versions in segments.items()
            for asset, version in versions.items()
        }
        made_of["model"] = model.version
        if generation.vq_weights is not None:
            made_of["vq_weights"] = weights_digest(Path(generation.vq_weights))
        with publishing(
            context,
            store,
            made_of=made_of,
            options=generation,
            leave_out=generation.NOT_IN_VERSION,
        ) as staging:
            write_json(staging.path / SEGMENTS, segments)
            with _kept(store, segments):
                shards = [
                    shard
                    for key in map(SegmentKey.parse, segments)
                    for shard in find_shards(
                        store.published("filtered_subset", key),
                        store.published("image_shards", key),
                        segments[str(key)]["image_shards"],
                    )
                ]
                evaluation = make_samples(shards, staging.path, generation, model)
            staging.metadata = evaluation.headline() | {"model": model.key}
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
