"""Subsets: the rows that a recipe takes from the scored pairs, with their embeddings."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel

from laion_assets import schemas
from laion_assets.clip.embed import image_path, metadata_path, save_vectors, text_path
from laion_assets.files import atomic_path
from laion_assets.filtering.parts import (
    open_vectors,
    part_numbers,
    part_path,
    read_part,
    write_part,
)
from laion_assets.filtering.recipe import Recipe, rows_where
from laion_assets.filtering.score import score_segment
from laion_assets.funnel import EXAMPLES_KEPT, StageCounts
from laion_assets.layout import FILTERED_SUBSET, PARTITIONS
from laion_assets.safety.options import SafetyOptions
from laion_assets.safety.prompts import category_embeddings, load_prompts
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

STAGE: Final = "subset"


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


class TakenWith(BaseModel, frozen=True):
    """What a manifest of a subset records of how its rows were chosen."""

    recipe: str
    threshold: float
    model: str


def take_subset(
    scored: Path,
    embeddings: Path,
    out: Path,
    recipe: Recipe,
    *,
    threshold: float,
) -> StageCounts:
    """Write the recipe's subset of every part.

    ``part-NNNNN.parquet`` has the columns of ``schemas.SUBSET``. ``img_emb/``, ``text_emb/`` and
    ``metadata/`` (the same bytes as the part; no file for no rows) hold the same rows in the layout
    of embedding-reader. Rows keep their order. A part that is in ``out`` already is not written
    again.

    Args:
        threshold: the lowest similarity kept, from the recipe or from the table.

    Returns:
        counts of the stage ``subset``; a pair that fails several rules counts for the first one.
    """
    counts = StageCounts(STAGE)
    numbers = part_numbers(scored)
    done = [part_path(out, number).exists() for number in numbers]
    progress = Progress("subset", "parts", len(numbers), logger, resumed=sum(done))
    for number, exists in zip(numbers, done, strict=True):
        table = read_part(part_path(scored, number))
        kept, part_counts = choose(table, recipe, threshold)
        counts.add(part_counts)
        if not exists:
            _write(number, table, kept, embeddings, out)
            progress.advance()
    return counts


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


def _write(
    number: int, table: pa.Table, kept: NDArray[np.int64], embeddings: Path, out: Path
) -> None:
    images = open_vectors(image_path(embeddings, number), len(table))
    texts = open_vectors(text_path(embeddings, number), len(table))
    save_vectors(image_path(out, number), images[kept])
    save_vectors(text_path(out, number), texts[kept])
    rows = table.take(pa.array(kept))
    columns = [rows[_COLUMNS.get(name, name)] for name in schemas.SUBSET.names]
    table = pa.table(columns, schema=schemas.SUBSET)
    # The parquet comes last: it says that the part is complete.
    part = part_path(out, number)
    if not len(table):
        # embedding-reader skips files without vectors, and would then pair each later file's
        # vectors with the metadata of the file before.
        write_part(part, table)
        return
    write_part(metadata_path(out, number), table)
    with atomic_path(part) as beside:
        os.link(metadata_path(out, number), beside)


def _refuse_other_model(embeddings: Path, model: ClipModel) -> None:
    # A folder that was made in another way has no notes; only its vectors' width can be compared.
    for path in sorted((embeddings / ".made_of").glob("*.json")):
        made_of = json.loads(path.read_text(encoding="utf-8"))
        if made_of["model_version"] != model.version:
            raise OtherModelError(
                f"{embeddings} was embedded by {made_of['model']} ({made_of['model_version']}), "
                f"not by {model.key} ({model.version}), whose categories do not apply to it"
            )


def filter_embeddings(
    embeddings: Path,
    out: Path,
    model: ClipModel,
    safety: SafetyOptions,
    recipe: Recipe,
) -> StageCounts:
    """Score a folder of embeddings into ``out/scored`` and take the subset into ``out``.

    ``model`` must be the one that embedded the folder; raises :class:`OtherModelError` if the
    folder's notes say otherwise. Parts of an earlier call in ``out`` are rebuilt, since they may be
    of another recipe.
    """
    _refuse_other_model(embeddings, model)
    threshold = recipe.threshold_of(model.key)
    categories = category_embeddings(load_prompts(safety.prompts), model)
    scored = out / "scored"
    for folder in (scored, out):
        for number in part_numbers(folder):
            part_path(folder, number).unlink()
    for stale in PARTITIONS[FILTERED_SUBSET].tables[1].paths(out):
        stale.unlink()
    score_segment(embeddings, scored, categories)
    return take_subset(scored, embeddings, out, recipe, threshold=threshold)
