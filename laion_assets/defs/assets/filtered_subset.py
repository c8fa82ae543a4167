"""The rows that the recipe takes, in the LAION-400M schema, with their embeddings beside them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.clip.embed import EmbeddedWith
from laion_assets.clip.thresholds import table_entry
from laion_assets.clip.vectors import texts_among
from laion_assets.dedup.claims import claiming_keys
from laion_assets.dedup.ledger import unsettled
from laion_assets.defs import checks, pools
from laion_assets.defs.declaration import Asset
from laion_assets.defs.metadata import numbers_table, table_preview
from laion_assets.defs.publishing import Publication, key_of, publishing
from laion_assets.defs.retries import retrying_transient
from laion_assets.filtering.figures import kept_by_tag, similarity_histogram, threshold_sheets
from laion_assets.filtering.one_of_each import (
    CLUSTERS,
    NO_CLUSTERS,
    clusters_held,
    copies_among,
)
from laion_assets.filtering.recipe import Recipe
from laion_assets.filtering.score import ScoredWith
from laion_assets.filtering.similarities import Similarities
from laion_assets.filtering.subset import TakenWith, heads_columns, take_subset
from laion_assets.lake import Lake, NotPublishedError
from laion_assets.layout import (
    EMBEDDINGS,
    FILTERED_SUBSET,
    IMAGE_SHARDS,
    NEAR_DUPLICATES,
    SCORED_PAIRS,
    SegmentKey,
    subset_asset,
    subset_ledger,
)
from laion_assets.settings import Settings
from laion_assets.tables import parts_of, rows_in
from resources.lake import LakeResource
from resources.rules import RecipeResource

ASSET = Asset(
    FILTERED_SUBSET,
    group="subset",
    revision=4,
    checks=(
        "schema_exact",
        "keys_unique",
        "rows_aligned",
        "above_threshold",
        "funnel_adds_up",
        "threshold_fits",
    ),
)

_UPSTREAM = (SCORED_PAIRS, EMBEDDINGS)


def _upstream(recipe: Recipe) -> tuple[str, ...]:
    return (*_UPSTREAM, NEAR_DUPLICATES) if recipe.duplicates else _UPSTREAM


def _pool(recipe: Recipe) -> str | None:
    # One segment of a subset claims at a time; in an object store others would wait for the lease.
    return pools.CLUSTERS if recipe.duplicates else None


def build(segments: dg.MultiPartitionsDefinition, settings: Settings) -> dg.AssetsDefinition:
    """The main recipe's subset, which is indexed and searched."""

    @dg.asset(
        **replace(ASSET, pool=_pool(settings.subset)).arguments(
            settings, segments, versioned=_versioned(settings.subset, settings)
        ),
        deps=_upstream(settings.subset),
        kinds={"parquet", "numpy"},
        description=__doc__,
    )
    @retrying_transient
    def filtered_subset(
        context: dg.AssetExecutionContext, lake: LakeResource, recipe: RecipeResource
    ) -> dg.MaterializeResult:
        return _take(context, lake.open(), recipe.options())

    return filtered_subset


def build_further(
    segments: dg.MultiPartitionsDefinition, settings: Settings
) -> list[dg.AssetsDefinition]:
    """An asset for each further recipe, of the same scores and embeddings."""
    return [
        _further(segments, settings, subset_asset(name), recipe)
        for name, recipe in settings.subsets.items()
    ]


def _further(
    segments: dg.MultiPartitionsDefinition, settings: Settings, name: str, recipe: Recipe
) -> dg.AssetsDefinition:
    @dg.asset(
        **replace(ASSET.named(name), pool=_pool(recipe)).arguments(
            settings, segments, versioned=_versioned(recipe, settings)
        ),
        deps=_upstream(recipe),
        kinds={"parquet", "numpy"},
        description=f"The rows that the recipe {recipe.title} takes. {recipe.about}".strip(),
    )
    @retrying_transient
    def further(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
        return _take(context, lake.open(), recipe)

    return further


def _versioned(recipe: Recipe, settings: Settings) -> list[Recipe | str]:
    return [recipe, table_entry(settings.clip.key)]


def _take(context: dg.AssetExecutionContext, store: Lake, recipe: Recipe) -> dg.MaterializeResult:
    # The model that the similarities are of, whatever the settings name by now.
    key = key_of(context)
    embeddings = store.manifest(EMBEDDINGS, key)
    model = EmbeddedWith.recorded(embeddings.metadata, f"{EMBEDDINGS} of {key}").identity
    scored = ScoredWith.recorded(
        store.manifest(SCORED_PAIRS, key).metadata, f"{SCORED_PAIRS} of {key}"
    )
    if not scored.is_same(model):
        raise dg.Failure(
            f"the scores are of the model {scored.title}, the embeddings of {model.title}: "
            "materialize scored_pairs again",
            allow_retries=False,
        )
    threshold = None
    if texts_among(file["name"] for file in embeddings.files):
        threshold = recipe.threshold_of(model.model, model.model_version)
    with (
        _claiming(context, store, recipe) as claim,
        publishing(
            context,
            store,
            upstream=_upstream(recipe),
            made_of={"threshold": str(threshold)},
            options=recipe,
        ) as made,
    ):
        counts = take_subset(
            made.input(SCORED_PAIRS),
            made.input(EMBEDDINGS),
            made.out,
            recipe,
            threshold=threshold,
            one_of_each=claim and partial(claim, made),
        )
        made.staging.counts = [counts]
        made.staging.metadata = TakenWith(
            **model.model_dump(),
            recipe=recipe.title,
            threshold=threshold,
            heads=scored.heads,
        ).model_dump()
        schema = schemas.with_scores(schemas.SUBSET, heads_columns(made.input(SCORED_PAIRS)))
        made.require(
            checks.schema_exact(made.rows, schema, parts_of(counts.kept)),
            checks.keys_unique(made.rows, "SAMPLE_ID"),
            checks.rows_aligned(made.rows, made.out),
            checks.above_threshold(made.rows, threshold),
            checks.funnel_adds_up(counts, rows_in(*made.rows), made.kept(EMBEDDINGS)),
            checks.threshold_fits(Similarities.read([made.input(SCORED_PAIRS)]), threshold),
        )
        pictures = _pictures(made, recipe, threshold)
    return made.result(
        **pictures,
        safety_tags=numbers_table(kept_by_tag(made.input(SCORED_PAIRS), made.out)),
        preview=table_preview(made.rows, ["TEXT", "similarity", "NSFW", "URL"]),
    )


_Claim = Callable[[Publication, NDArray[np.int64]], NDArray[np.bool_] | None]


@contextmanager
def _claiming(
    context: dg.AssetExecutionContext, store: Lake, recipe: Recipe
) -> Iterator[_Claim | None]:
    """Yield what claims the clusters of the taken rows, if the recipe takes one of each.

    If it takes all, and the published partition is of one that did not, it releases the clusters.
    The ledger is leased when the function is called, and until the subset is published.
    """
    asset, key = context.asset_key.path[-1], key_of(context)
    if not (recipe.duplicates or _has_clusters(store, asset, key)):
        yield None
        return
    with ExitStack() as stack:

        def claim(made: Publication, taken: NDArray[np.int64]) -> NDArray[np.bool_] | None:
            scored = made.input(SCORED_PAIRS)
            near = made.input(NEAR_DUPLICATES) if recipe.duplicates else None
            lease = stack.enter_context(store.lease(subset_ledger(asset), asset, unsettled))
            claims = stack.enter_context(
                claiming_keys(lease.folder, lease.partitions, key, clusters_held)
            )
            copies = None
            if near is None:
                claims.write(made.out, *NO_CLUSTERS)
            else:
                copies = copies_among(scored, near, taken, claims, made.out)
            lease.save()
            return copies

        yield claim


def _has_clusters(store: Lake, asset: str, key: SegmentKey) -> bool:
    """Whether the published subset takes one of each cluster."""
    with suppress(NotPublishedError):
        files = store.manifest(asset, key).files
        return any(file["name"] == CLUSTERS for file in files)
    return False


def _pictures(made: Publication, recipe: Recipe, threshold: float | None) -> Mapping[str, Any]:
    if threshold is None:
        return {"similarity": "none: the images have no captions"}
    scored, shards = made.input(SCORED_PAIRS), made.store.folder(IMAGE_SHARDS, made.key)
    kept, dropped = threshold_sheets(scored, shards, recipe, threshold)
    shown = {
        "similarity": (
            similarity_histogram(Similarities.read([scored]), [threshold]),
            "histogram of similarity with the threshold",
        ),
        "kept_just_above": (kept, "the least similar of the kept, with their similarity"),
        "dropped_just_below": (dropped, "the most similar of the dropped"),
    }
    return {name: made.picture(name, image, alt) for name, (image, alt) in shown.items()}
