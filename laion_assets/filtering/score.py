"""Score every embedded pair: similarity, safety tags, and heads. Nothing is dropped here."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.vectors import image_path, open_vectors, places_in
from laion_assets.filtering.similarities import Similarities, cosines, file_of
from laion_assets.heads.score import Scorer, as_column
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
    read_parquet,
    rows_in,
    write_array,
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
    heads: Mapping[str, str] = {}
    """Name -> digest of each head that scored the rows."""

    @classmethod
    def of(
        cls,
        rows: int,
        prompts: Prompts,
        categories: Categories,
        model: ModelIdentity,
        heads: Sequence[Scorer] = (),
    ) -> ScoredWith:
        return cls(
            rows=rows,
            prompts=f"{prompts.name} v{prompts.version}",
            prompts_digest=prompts.digest,
            words=categories.words.title,
            heads={scorer.name: scorer.head.digest for scorer in heads},
            **model.identity.model_dump(),
        )


@dataclass(frozen=True)
class Earlier:
    """A folder of scores of the same embeddings, made with the same prompts by the same code.

    Its rows are taken over, and images are scored by those heads alone that did not score them yet.
    """

    folder: Path
    heads: Mapping[str, str] = field(default_factory=dict)
    """Name -> digest of each head that scored its rows."""


def write_categories(folder: Path, categories: Categories) -> None:
    """Keep what the prompts were embedded into beside the scores: (k, dim) float32."""
    write_array(folder / CATEGORIES, categories.vectors)


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


def score_segment(
    embeddings: Path,
    out: Path,
    categories: Categories,
    heads: Sequence[Scorer] = (),
    earlier: Earlier | None = None,
) -> int:
    """Score every part of a folder of embeddings into the part of the same number.

    Its rows (``schemas.SCORED``, and a column for each head) are those of the embeddings, in the
    same order; without captions they have no similarity. Beside it are the counts of its real and
    shuffled pairs (:mod:`laion_assets.filtering.similarities`). A part that is in ``out`` already
    is not scored again. Returns the number of rows in all parts. Memory: some hundred MB, whatever
    a part's size.
    """
    parts = PARTITIONS[EMBEDDINGS].rows.paths(embeddings)
    todo = [part for part in parts if not part_path(out, part_number(part)).exists()]
    rows = rows_in(*parts)
    progress = Progress("scores", "rows", rows, logger, resumed=rows - rows_in(*todo))
    schema = schemas.with_scores(schemas.SCORED, [scorer.column for scorer in heads])
    for part in todo:
        number, similarities = part_number(part), Similarities()
        with TableWriter(part_path(out, number), schema) as writer:
            if earlier and _has_part(earlier, part):
                for scored in _taken_over(earlier, part, embeddings, heads):
                    writer.write(scored.select(schema.names))
                    progress.advance(len(scored))
                shutil.copyfile(file_of(earlier.folder, number), file_of(out, number))
                continue
            scores, start = _scores(heads, embeddings, part), 0
            for some, images, texts in with_vectors(part, embeddings):
                scored = _scored(some, images, texts, categories)
                writer.write(_with_columns(scored, scores, start))
                start += len(some)
                if texts is not None:
                    similarities.add(scored["similarity"].to_numpy(), some, images, texts)
                progress.advance(len(some))
            # Before the part is there, which says that all of it is.
            similarities.write(out, number)
    return rows


def _has_part(earlier: Earlier, part: Path) -> bool:
    """Whether an earlier part has the same samples, and its counts beside it."""
    path = part_path(earlier.folder, part_number(part))
    if not path.exists() or not file_of(earlier.folder, part_number(part)).exists():
        return False
    ids = [read_parquet(one, ["SAMPLE_ID"])["SAMPLE_ID"] for one in (path, part)]
    return bool(ids[0].equals(ids[1]))


def _taken_over(
    earlier: Earlier, part: Path, embeddings: Path, heads: Sequence[Scorer]
) -> Iterator[pa.Table]:
    """The rows of an earlier part, a row group at a time, with the heads' columns."""
    kept = [scorer for scorer in heads if earlier.heads.get(scorer.name) == scorer.head.digest]
    new = [scorer for scorer in heads if scorer not in kept]
    columns = [*schemas.SCORED.names, *(scorer.column for scorer in kept)]
    scores, start = _scores(new, embeddings, part), 0
    for batch in batches(part_path(earlier.folder, part_number(part)), columns, ROW_GROUP):
        rows = pa.Table.from_batches([batch])
        yield _with_columns(rows, scores, start)
        start += len(rows)


def _scores(heads: Sequence[Scorer], embeddings: Path, part: Path) -> dict[str, pa.Array]:
    """Scores of all images of a part, by column.

    The last bits of a score depend on which rows are multiplied at once. A part is thus scored as a
    whole, however its rows are read: a head that comes later gives what it had given at first.
    """
    if not heads:
        return {}
    images = open_vectors(image_path(embeddings, part_number(part)), rows_in(part))
    return {scorer.column: as_column(scorer.score(images)) for scorer in heads}


def _with_columns(rows: pa.Table, scores: Mapping[str, pa.Array], start: int) -> pa.Table:
    for column, values in scores.items():
        rows = rows.append_column(column, values.slice(start, len(rows)))
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
