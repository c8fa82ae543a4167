"""Subsets: the rows that a recipe takes from the scored pairs, with their embeddings."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.clip.embed import MadeOf
from laion_assets.clip.identity import ModelIdentity, the_one
from laion_assets.clip.vectors import SamplesWriter, image_path
from laion_assets.files import write_json
from laion_assets.filtering.plausible import counted, tags_problem, threshold_problem
from laion_assets.filtering.recipe import Recipe, RecipeError, rows_where
from laion_assets.filtering.score import score_segment, with_vectors
from laion_assets.filtering.similarities import Similarities, files_in
from laion_assets.funnel import EXAMPLES_KEPT, StageCounts
from laion_assets.heads.score import Scorer, refuse_other_model
from laion_assets.layout import EMBEDDINGS, PARTITIONS, SCORED_PAIRS
from laion_assets.safety.options import SafetyOptions
from laion_assets.safety.prompts import category_embeddings, load_prompts
from laion_assets.tables import batches, rows_in
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

STAGE: Final = "subset"


class OtherModelError(ValueError):
    """The embeddings are of another model than the one to filter with."""


class NoCaptionsError(ValueError):
    """The samples have no captions, so no similarity to filter by."""


_COLUMNS: Final = {
    "URL": "url",
    "TEXT": "text",
    "HEIGHT": "height",
    "WIDTH": "width",
    "LICENSE": "license",
    "NSFW": "nsfw",
    "LANGUAGE": "language",
}
"""Column of ``schemas.SUBSET`` -> column of ``schemas.SCORED``, where the names differ."""

_FOR_LOOK_UPS: Final[Mapping[str, Any]] = {
    "row_group": 2_048,
    "use_dictionary": ["LICENSE", "NSFW", "LANGUAGE", "wat_file"],
    "write_statistics": ["SAMPLE_ID", "HEIGHT", "WIDTH", "similarity", "key", "LICENSE", "NSFW"],
}
"""How a subset is written: search shows a row or two of it, and a row group is the least that can
be read. One of 2,048 rows takes a millisecond, one of 100,000 fifteen to thirty. The files are no
larger; statistics of unsorted texts would be."""


class TakenWith(ModelIdentity, frozen=True):
    """What a subset records of how its rows were chosen: in its manifest or, outside a lake, in
    :data:`NOTE`."""

    recipe: str
    threshold: float
    heads: Mapping[str, str] = {}
    """Name -> digest of each head whose scores the rows have."""


NOTE: Final = ".taken_with.json"
"""File of a subset outside a lake that holds its :class:`TakenWith`."""


def take_subset(
    scored: Path,
    embeddings: Path,
    out: Path,
    recipe: Recipe,
    *,
    threshold: float,
) -> StageCounts:
    """Write the recipe's subset of all parts of a segment.

    The rows (``schemas.SUBSET``, and the heads' columns) keep their order and fill parts of their
    own, each with the rows' vectors beside it, as those of :func:`embed_shards` are. Whatever
    ``out`` holds is replaced: a killed call is repeated as a whole, since a million pairs take
    seconds. Raises :class:`~laion_assets.filtering.recipe.RecipeError` if the recipe asks for the
    scores of a head that the pairs do not have.

    Args:
        threshold: the lowest similarity kept, from the recipe or from the table.

    Returns:
        counts of the stage ``subset``; a pair that fails several rules counts for the first one.
    """
    counts = StageCounts(STAGE)
    parts = PARTITIONS[SCORED_PAIRS].rows.paths(scored)
    progress = Progress("subset", "rows", rows_in(*parts), logger)
    dim = np.load(image_path(embeddings, 0), mmap_mode="r", allow_pickle=False).shape[1]
    schema = schemas.with_scores(schemas.SUBSET, heads_columns(scored))
    with SamplesWriter(out, schema, dim, **_FOR_LOOK_UPS) as writer:
        for part in parts:
            for rows, images, texts in with_vectors(part, embeddings):
                kept, of_these = choose(rows, recipe, threshold)
                counts.add(of_these)
                taken = rows.take(pa.array(kept))
                columns = [taken[_COLUMNS.get(name, name)] for name in schema.names]
                writer.write(pa.table(columns, schema=schema), images[kept], texts[kept])
                progress.advance(len(rows))
    return counts


def heads_columns(scored: Path) -> list[str]:
    """The heads' columns of a folder of scores, sorted."""
    part = PARTITIONS[SCORED_PAIRS].rows.paths(scored)[0]
    return schemas.score_columns(pq.read_schema(part).names)


def choose(
    table: pa.Table, recipe: Recipe, threshold: float
) -> tuple[NDArray[np.int64], StageCounts]:
    """Rows of a scored table that the recipe takes, int64 ascending, and the counts."""

    def column(name: str) -> NDArray[np.bool_]:
        values: NDArray[np.bool_] = table[name].to_numpy()
        return values

    suspect = np.isin(table["nsfw"].to_numpy(), ("NSFW", "UNSURE"))
    rules = {"below_threshold": ~(table["similarity"].to_numpy() >= threshold)}
    if recipe.drop_minor_text:
        rules["unsafe_minor_text"] = suspect & column("text_names_minors")
    if recipe.drop_underage:
        rules["unsafe_underage"] = suspect & column("underage_ranked")
    if recipe.drop_animal:
        rules["unsafe_animal"] = suspect & column("animal_ranked")
    if recipe.min_scores or recipe.max_scores:
        rules["scores"] = ~_scores_within(table, recipe)
    if recipe.where is not None:
        rules["predicate"] = ~rows_where(table, recipe.where)

    counts = StageCounts(STAGE)
    left = np.ones(len(table), dtype=np.bool_)
    for reason, refuses in rules.items():
        refused = np.flatnonzero(left & refuses)
        shown = table["url"].take(pa.array(refused[:EXAMPLES_KEPT])).to_pylist()
        for url in shown:
            counts.reject(reason, url)
        counts.reject(reason, n=len(refused) - len(shown))
        left[refused] = False
    kept = np.flatnonzero(left).astype(np.int64)
    counts.keep(len(kept))
    return kept, counts


def _scores_within(table: pa.Table, recipe: Recipe) -> NDArray[np.bool_]:
    """Whether each row's scores are within the recipe's bounds; a score that is null is not."""
    within = np.ones(len(table), dtype=np.bool_)
    for bounds, is_within in (
        (recipe.min_scores, np.greater_equal),
        (recipe.max_scores, np.less_equal),
    ):
        for head, bound in bounds.items():
            column = f"{schemas.SCORE_PREFIX}{head}"
            if column not in table.column_names:
                raise RecipeError(
                    f"the recipe {recipe.name!r} needs the head {head!r}, which did not score "
                    f"these pairs: add [heads.{head}] to the settings, and materialize "
                    "scored_pairs again"
                )
            within &= is_within(table[column].to_numpy(), np.float32(bound))
    return within


def embedded_by(embeddings: Path) -> ModelIdentity | None:
    """The model that a folder's notes name; None without notes: it was made in another way.

    Raises :class:`~laion_assets.clip.identity.SeveralModelsError`.
    """
    notes = MadeOf.read(embeddings).shards.values()
    return the_one((ModelIdentity.recorded(note, embeddings) for note in notes), embeddings)


def _refuse_without_captions(embeddings: Path) -> None:
    parts = PARTITIONS[EMBEDDINGS].rows.paths(embeddings)
    texts = (batch["text"] for part in parts for batch in batches(part, ["text"]))
    if rows_in(*parts) and not any(pc.any(pc.not_equal(some, "")).as_py() for some in texts):
        raise NoCaptionsError(
            f"the samples of {embeddings} have no captions: there is no similarity to filter by. "
            "Index the embeddings themselves"
        )


def filter_embeddings(
    embeddings: Path,
    out: Path,
    model: ClipModel,
    safety: SafetyOptions,
    recipe: Recipe,
    scores: Path | None = None,
    heads: Sequence[Scorer] = (),
) -> StageCounts:
    """Score a folder of embeddings and take the subset into ``out``.

    ``model`` must be the one that embedded the folder; raises :class:`OtherModelError` if the
    folder's notes say otherwise, and :class:`NoCaptionsError` for images alone. The scores are kept
    in the folder ``scores``, if one is given, and replace those of an earlier call, which may be of
    other embeddings. ``heads`` must be of that model, too: raises
    :class:`~laion_assets.heads.head.HeadError`.
    """
    _refuse_without_captions(embeddings)
    threshold = recipe.threshold_of(model.key)
    made_by = embedded_by(embeddings)
    # Without notes, only the vectors' width can be compared.
    if made_by and not made_by.is_same(model.identity):
        raise OtherModelError(
            f"{embeddings} was embedded by {made_by.title}, not by {model.identity.title}, "
            "whose categories do not apply to it"
        )
    refuse_other_model(heads, model.identity)
    categories = category_embeddings(load_prompts(safety.prompts), model)
    scored = scores or out / ".scores"
    for stale in (*PARTITIONS[SCORED_PAIRS].rows.paths(scored), *files_in(scored)):
        stale.unlink()
    score_segment(embeddings, scored, categories, heads)
    tags, nearest = counted(scored, "nsfw"), counted(scored, "nsfw_category_1")
    for problem in (
        tags_problem(tags, nearest, safety.plausible_share),
        threshold_problem(Similarities.read([scored]), threshold),
    ):
        if problem:
            logger.warning(problem)
    counts = take_subset(scored, embeddings, out, recipe, threshold=threshold)
    if not scores:
        shutil.rmtree(scored)
    taken_with = TakenWith(
        **model.identity.model_dump(),
        recipe=recipe.title,
        threshold=threshold,
        heads={scorer.name: scorer.head.digest for scorer in heads},
    )
    write_json(out / NOTE, taken_with.model_dump())
    return counts
