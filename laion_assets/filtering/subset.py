"""Subsets: the rows that a recipe takes from the scored pairs, with their embeddings."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.clip.embed import MadeOf
from laion_assets.clip.identity import ModelIdentity, the_one
from laion_assets.clip.vectors import SamplesWriter, has_texts, image_path, places_in
from laion_assets.files import write_json
from laion_assets.filtering.plausible import counted, tags_problem, threshold_problem
from laion_assets.filtering.recipe import Recipe, RecipeError, rows_where
from laion_assets.filtering.score import score_segment, with_vectors
from laion_assets.filtering.similarities import Similarities, files_in
from laion_assets.funnel import EXAMPLES_KEPT, StageCounts
from laion_assets.heads.score import Scorer, refuse_other_model
from laion_assets.layout import PARTITIONS, SCORED_PAIRS
from laion_assets.safety.options import SafetyOptions
from laion_assets.safety.prompts import category_embeddings, load_prompts
from laion_assets.tables import ROW_GROUP, batches, rows_in
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

STAGE: Final = "subset"


OneOfEach = Callable[[NDArray[np.int64]], NDArray[np.bool_] | None]
"""Given the rows that a recipe takes, by number: (rows,) bool, which of all rows are left out."""


class OtherModelError(ValueError):
    """The embeddings are of another model than the one to filter with."""


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
    threshold: float | None
    """None: the images have no captions, and so no similarity."""
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
    threshold: float | None,
    one_of_each: OneOfEach | None = None,
) -> StageCounts:
    """Write the recipe's subset of all parts of a segment.

    The rows (``schemas.SUBSET``, and the heads' columns) keep their order and fill parts of their
    own, each with the rows' vectors beside it, as those of :func:`embed_shards` are. Whatever
    ``out`` holds is replaced: a killed call is repeated as a whole, since a million pairs take
    seconds. Raises :class:`~laion_assets.filtering.recipe.RecipeError` if the recipe asks for the
    scores of a head that the pairs do not have.

    Args:
        threshold: the lowest similarity kept, from the recipe or from the table; None for images
            without captions, which the recipe's other rules choose among.
        one_of_each: says which of the rows that the recipe takes are left out as copies, if any.

    Returns:
        counts of the stage ``subset``; a pair that fails several rules counts for the first one.
    """
    counts = StageCounts(STAGE)
    parts = PARTITIONS[SCORED_PAIRS].rows.paths(scored)
    progress = Progress("subset", "rows", rows_in(*parts), logger)
    copies = one_of_each(_taken(parts, recipe, threshold)) if one_of_each else None
    at = 0
    dim = np.load(image_path(embeddings, 0), mmap_mode="r", allow_pickle=False).shape[1]
    places = places_in(embeddings)
    schema = schemas.with_scores(schemas.SUBSET, heads_columns(scored))
    with SamplesWriter(out, schema, dim, places=places, **_FOR_LOOK_UPS) as writer:
        for part in parts:
            for rows, images, texts in with_vectors(part, embeddings):
                kept, of_these = choose(rows, recipe, threshold)
                if copies is not None:
                    of_these.drop("duplicate_image", int(copies[at + kept].sum()))
                    kept = kept[~copies[at + kept]]
                at += len(rows)
                counts.add(of_these)
                taken = rows.take(pa.array(kept))
                columns = [taken[_COLUMNS.get(name, name)] for name in schema.names]
                vectors = [some[kept] for some in (images, texts) if some is not None]
                writer.write(pa.table(columns, schema=schema), *vectors)
                progress.advance(len(rows))
    return counts


def _taken(parts: Sequence[Path], recipe: Recipe, threshold: float | None) -> NDArray[np.int64]:
    """Numbers of the rows that a recipe takes, through all parts."""
    found, at = [np.zeros(0, np.int64)], 0
    for part in parts:
        for batch in batches(part, rows=ROW_GROUP):
            kept, _ = choose(pa.Table.from_batches([batch]), recipe, threshold)
            found.append(at + kept)
            at += len(batch)
    return np.concatenate(found)


def heads_columns(scored: Path) -> list[str]:
    """The heads' columns of a folder of scores, sorted."""
    part = PARTITIONS[SCORED_PAIRS].rows.paths(scored)[0]
    return schemas.score_columns(pq.read_schema(part).names)


def choose(
    table: pa.Table, recipe: Recipe, threshold: float | None
) -> tuple[NDArray[np.int64], StageCounts]:
    """Rows of a scored table that the recipe takes, int64 ascending, and the counts.

    ``threshold``: as :func:`take_subset` has it.
    """

    def column(name: str) -> NDArray[np.bool_]:
        values: NDArray[np.bool_] = table[name].to_numpy()
        return values

    suspect = np.isin(table["nsfw"].to_numpy(), ("NSFW", "UNSURE"))
    rules: dict[str, NDArray[np.bool_]] = {}
    if threshold is not None:
        rules["below_threshold"] = ~(table["similarity"].to_numpy() >= threshold)
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
    notes = MadeOf.read(embeddings).shards
    made_by = (
        (f"shard {number:05d}", ModelIdentity.recorded(note, embeddings))
        for number, note in notes.items()
    )
    return the_one(made_by, embeddings)


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
    folder's notes say otherwise, and :class:`RecipeError` for a recipe that takes one of each
    cluster. Of images without captions, no threshold is asked. The scores are kept in the folder
    ``scores``, if one is given, and replace those of an earlier call, which may be of other
    embeddings. ``heads`` must be of that model, too: raises
    :class:`~laion_assets.heads.head.HeadError`.
    """
    if recipe.duplicates:
        raise RecipeError(
            f"the recipe {recipe.name!r} takes one of each cluster of near-duplicates, which are "
            "known in a lake alone: materialize its subset there"
        )
    threshold = recipe.threshold_of(model.key, model.version) if has_texts(embeddings) else None
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
        threshold_problem(Similarities.read([scored]), threshold) if threshold is not None else "",
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
