"""Score every embedded pair: similarity and safety tags. Nothing is dropped here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.vectors import open_vectors, places_in
from laion_assets.files import atomic_path
from laion_assets.filtering.similarities import Similarities, cosines
from laion_assets.layout import EMBEDDINGS, PARTITIONS
from laion_assets.safety.minors import names_minors
from laion_assets.safety.prompts import Categories, Prompts, categories_of
from laion_assets.safety.tags import tag
from laion_assets.tables import (
    ROW_GROUP,
    TableWriter,
    batches,
    part_number,
    part_path,
    rows_in,
)
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

CATEGORIES: Final = "_categories.npy"
"""File of the embedded prompts, beside the scores."""


class ScoredWith(ModelIdentity, frozen=True):
    """What a manifest of `scored_pairs` records of its making."""

    rows: int
    prompts: str
    prompts_digest: str
    words: str

    @classmethod
    def of(
        cls, rows: int, prompts: Prompts, categories: Categories, model: ModelIdentity
    ) -> ScoredWith:
        return cls(
            rows=rows,
            prompts=f"{prompts.name} v{prompts.version}",
            prompts_digest=prompts.digest,
            words=categories.words.title,
            **model.identity.model_dump(),
        )


def write_categories(folder: Path, categories: Categories) -> None:
    """Keep what the prompts were embedded into beside the scores: (k, dim) float32."""
    with atomic_path(folder / CATEGORIES) as beside, beside.open("wb") as stream:
        np.save(stream, categories.vectors)


def kept_categories(
    folder: Path, made: ScoredWith, prompts: Prompts, embedded: ModelIdentity
) -> Categories | None:
    """The categories that a folder of scores was made with, if they are those of these prompts by
    the model of these embeddings: no model is needed then. ``made``: what that folder records."""
    path = folder / CATEGORIES
    same = (made.prompts_digest, made.model_version) == (prompts.digest, embedded.model_version)
    if not same or not path.exists():
        return None
    return categories_of(prompts, np.load(path, allow_pickle=False))


def score_segment(embeddings: Path, out: Path, categories: Categories) -> int:
    """Score every part of a folder of embeddings into the part of the same number.

    Its rows (``schemas.SCORED``) are those of the embeddings, in the same order; without captions
    they have no similarity. Beside it are the
    counts of its real and shuffled pairs (:mod:`laion_assets.filtering.similarities`). A part that
    is in ``out`` already is not scored again. Returns the number of rows in all parts. Memory: some
    hundred MB, whatever a part's size.
    """
    parts = PARTITIONS[EMBEDDINGS].rows.paths(embeddings)
    todo = [part for part in parts if not part_path(out, part_number(part)).exists()]
    rows = rows_in(*parts)
    progress = Progress("scores", "rows", rows, logger, resumed=rows - rows_in(*todo))
    for part in todo:
        number, similarities = part_number(part), Similarities()
        with TableWriter(part_path(out, number), schemas.SCORED) as writer:
            for some, images, texts in with_vectors(part, embeddings):
                scored = _scored(some, images, texts, categories)
                writer.write(scored)
                if texts is not None:
                    similarities.add(scored["similarity"].to_numpy(), some, images, texts)
                progress.advance(len(some))
            # Before the part is there, which says that all of it is.
            similarities.write(out, number)
    return rows


def with_vectors(
    part: Path, embeddings: Path
) -> Iterator[tuple[pa.Table, NDArray[Any], NDArray[Any] | None]]:
    """The rows of a part, a row group at a time, with their image and their text vectors.

    ``embeddings``: the folder that has the vectors of that part's number; they are memory-mapped.
    Images without captions have no text vectors: None. Raises ``ValueError`` if there are not as
    many vectors as rows.
    """
    images, *others = (
        open_vectors(place(embeddings, part_number(part)), rows_in(part))
        for place in places_in(embeddings)
    )
    start = 0
    for batch in batches(part, rows=ROW_GROUP):
        rows = slice(start, start + len(batch))
        texts = others[0][rows] if others else None
        yield pa.Table.from_batches([batch]), images[rows], texts
        start = rows.stop


def _scored(
    rows: pa.Table, images: NDArray[Any], texts: NDArray[Any] | None, categories: Categories
) -> pa.Table:
    tags = tag(images, categories)
    columns = {
        **{name: rows[name] for name in schemas.EMBEDDED.names},
        "similarity": pa.nulls(len(rows)) if texts is None else cosines(images, texts),
        "nsfw": tags.nsfw,
        "nsfw_category_1": tags.nsfw_category_1,
        "nsfw_category_2": tags.nsfw_category_2,
        "text_names_minors": names_minors(rows["text"], categories.words),
        "underage_ranked": tags.underage_ranked,
        "animal_ranked": tags.animal_ranked,
    }
    return pa.table(columns, schema=schemas.SCORED)
