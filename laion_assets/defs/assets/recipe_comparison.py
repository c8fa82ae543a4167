"""Which of the settings' recipes trains the better model: small models on pairs that none saw.

Never built automatically, because it is for a person who asks. It takes minutes on two cores.
"""

import logging
from collections.abc import Mapping, Sequence

import dagster as dg

from laion_assets.clip.embed import EmbeddedWith
from laion_assets.clip.identity import ModelIdentity, the_one
from laion_assets.clip.thresholds import UnknownThresholdError, table_entry
from laion_assets.clip.vectors import texts_among
from laion_assets.comparison.pool import Rules, Segment, enough_segments, read_pool
from laion_assets.comparison.result import PLOT
from laion_assets.defs import pools
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import numbers_table
from laion_assets.defs.publishing import (
    named_versions,
    publishing,
    reading,
    versions_of,
    whole_input,
)
from laion_assets.defs.retries import retrying_transient
from laion_assets.files import atomic_path
from laion_assets.filtering.recipe import DEFAULT, Recipe, RecipeError, load_recipe
from laion_assets.filtering.score import ScoredWith
from laion_assets.filtering.subset import OtherModelError
from laion_assets.lake import Lake, NotPublishedError
from laion_assets.layout import (
    EMBEDDINGS,
    NEAR_DUPLICATES,
    RECIPE_COMPARISON,
    SCORED_PAIRS,
    SegmentKey,
)
from laion_assets.settings import Settings
from resources.clip import ClipModelResource
from resources.lake import LakeResource
from resources.rules import ComparisonResource, RecipeResource

logger = logging.getLogger(__name__)

ASSET = Asset(RECIPE_COMPARISON, group="subset", revision=1, pool=pools.GENERATION)

_MADE_OF = (SCORED_PAIRS, EMBEDDINGS, NEAR_DUPLICATES)
_UNREAD = {
    SCORED_PAIRS: ("_*",),
    EMBEDDINGS: ("_text_emb/*", "_image_digests.npy"),
    NEAR_DUPLICATES: ("_*",),
}


def build(settings: Settings) -> dg.AssetsDefinition:
    further = list(settings.subsets.values())

    @dg.asset(
        **ASSET.arguments(
            settings,
            versioned=[
                settings.comparison,
                settings.subset,
                *further,
                table_entry(settings.clip.key),
                settings.clip.model,
            ],
        ),
        deps=list(_MADE_OF),
        kinds={"torch"},
        description=__doc__,
    )
    @retrying_transient
    def recipe_comparison(
        context: dg.AssetExecutionContext,
        lake: LakeResource,
        clip: ClipModelResource,
        recipe: RecipeResource,
        comparison: ComparisonResource,
    ) -> dg.MaterializeResult:
        from laion_assets.clip.model import tokenizer_of
        from laion_assets.comparison.compare import compare
        from laion_assets.stats.compared import figure_of

        store, options, main = lake.open(), comparison.options(), recipe.options()
        available = _segments(store)
        model, rows = _model_and_rows(store, available)
        segments = {key: available[key] for key in enough_segments(rows, options.pool)}
        rules = _rules([main, *further], model)
        made_of = named_versions(segments)
        made_of |= {f"threshold {one.recipe.title}": str(one.threshold) for one in rules}
        # A model that cannot be loaded is found before anything is read.
        tokenize = tokenizer_of(clip.options())
        with publishing(context, store, made_of=made_of, options=options) as made:
            with reading(store, _MADE_OF, segments):
                pool = read_pool([_folders(store, key) for key in segments], rules, options)
            found = compare(pool, rules, _matching(model, main), options, tokenize, model.title)
            found.write(made.out)
            figure = figure_of(found)
            with atomic_path(made.out / PLOT) as beside:
                beside.write_bytes(figure.light)
            made.staging.metadata = {
                "conclusion": found.conclusion,
                "control_holds": found.control_holds,
                "samples": found.samples,
                "recipes": [one.recipe.title for one in rules],
                "pairs": len(pool),
                "segments": len(segments),
                "segments_available": len(available),
                "model": model.model,
            }
        return made.result(
            table=numbers_table(found.table()), plot=made.view(made.out / PLOT, figure.alt)
        )

    return recipe_comparison


def _segments(store: Lake) -> Mapping[str, Mapping[str, str]]:
    """The versions of the segments that have captions and all that is needed, by segment."""
    keys = store.segments(SCORED_PAIRS)
    found = versions_of(store, _MADE_OF, keys)
    if left_out := [str(key) for key in keys if str(key) not in found]:
        logger.warning(f"left out, as not all of {', '.join(_MADE_OF)}: {', '.join(left_out)}")
    with_texts = {
        key: versions
        for key, versions in found.items()
        if texts_among(
            file["name"] for file in store.manifest(EMBEDDINGS, SegmentKey.parse(key)).files
        )
    }
    if not with_texts:
        raise NotPublishedError(f"no segment with captions has all of {', '.join(_MADE_OF)}")
    return with_texts


def _model_and_rows(
    store: Lake, segments: Mapping[str, object]
) -> tuple[ModelIdentity, dict[str, int]]:
    """The model that all vectors and scores are of, and each segment's number of scored pairs."""
    models: list[tuple[object, ModelIdentity]] = []
    rows: dict[str, int] = {}
    for key in map(SegmentKey.parse, segments):
        where = f"{EMBEDDINGS} of {key}"
        of = EmbeddedWith.recorded(store.manifest(EMBEDDINGS, key).metadata, where)
        manifest = store.manifest(SCORED_PAIRS, key)
        scored = ScoredWith.recorded(manifest.metadata, f"{SCORED_PAIRS} of {key}")
        rows[str(key)] = scored.rows
        if not scored.is_same(of):
            raise OtherModelError(
                f"{SCORED_PAIRS} of {key} is of another model than its embeddings, {of.title}:"
                " materialize it again"
            )
        models.append((key, of.identity))
    model = the_one(models, EMBEDDINGS)
    assert model is not None
    return model, rows


def _rules(recipes: Sequence[Recipe], model: ModelIdentity) -> list[Rules]:
    """The recipes, each once, with the thresholds for the model. Raises :class:`RecipeError`."""
    found: dict[str, Recipe] = {}
    for recipe in recipes:
        if found.setdefault(recipe.title, recipe) != recipe:
            raise RecipeError(f"two recipes are called {recipe.title} and differ: rename one")
    return [
        Rules(recipe, recipe.threshold_of(model.model, model.model_version))
        for recipe in found.values()
    ]


def _matching(model: ModelIdentity, main: Recipe) -> float:
    """The lowest similarity of the held-out pairs that count as matching: LAION-400M's, whatever
    the settings' recipes are, or the main recipe's for a model without such a threshold."""
    try:
        return load_recipe(DEFAULT).threshold_of(model.model, model.model_version)
    except UnknownThresholdError:
        return main.threshold_of(model.model, model.model_version)


def _folders(store: Lake, key: str) -> Segment:
    of = SegmentKey.parse(key)
    return Segment(*(whole_input(store, asset, of, _UNREAD[asset]) for asset in _MADE_OF))
