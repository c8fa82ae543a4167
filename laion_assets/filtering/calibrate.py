"""What a model's own pairs say about its threshold, as `laion-assets calibrate` reports it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from laion_assets.clip.identity import ModelIdentity
from laion_assets.clip.options import public_key
from laion_assets.clip.vectors import image_path
from laion_assets.filtering.score import with_vectors
from laion_assets.filtering.similarities import (
    FEWEST,
    LET_THROUGH,
    PROPOSED,
    NotCalibratedError,
    Similarities,
    cosines,
    files_in,
)
from laion_assets.layout import EMBEDDINGS, PARTITIONS
from laion_assets.tables import part_number, rows_in
from laion_assets.work import Progress

logger = logging.getLogger(__name__)


def similarities_of(folder: Path) -> Similarities:
    """The similarities of a folder of scores, or of one of embeddings, whose vectors are read.

    A million pairs take seconds, and memory some hundred MB whatever their number. Raises
    :class:`NotCalibratedError` for a folder of something else.
    """
    if files_in(folder):
        return Similarities.read([folder])
    parts = PARTITIONS[EMBEDDINGS].rows.paths(folder)
    if not parts or not image_path(folder, part_number(parts[0])).exists():
        raise NotCalibratedError(f"there are neither scores nor embeddings in {folder}")
    found = Similarities()
    progress = Progress("similarities", "rows", rows_in(*parts), logger)
    for part in parts:
        for rows, images, texts in with_vectors(part, folder):
            if texts is None:
                raise NotCalibratedError(
                    f"the images of {folder} have no captions to compare them with"
                )
            found.add(cosines(images, texts), rows, images, texts)
            progress.advance(len(rows))
    return found


def report(found: Similarities, model: ModelIdentity | None = None) -> Iterator[str]:
    """Lines that propose thresholds and, last, what to write into the settings.

    ``model``: the one that the similarities are of, if it is known.
    """
    real, shuffled = int(found.real.sum()), int(found.shuffled.sum())
    yield f"{real:,} pairs, {shuffled:,} shuffled pairs"
    if shuffled < FEWEST:
        yield f"that is few: shares of less than {FEWEST:,} shuffled pairs are rough"
    yield ""
    yield "shuffled pairs let through   threshold   real pairs kept"
    for share, proposal in zip(LET_THROUGH, found.proposals(), strict=True):
        yield f"{share:>26.0%}   {proposal.threshold:>9.3f}   {proposal.real:>15.1%}"
    proposed = found.propose(PROPOSED)
    yield ""
    if model:
        key = f"{public_key(model.model)}@{model.model_version}"
        yield "in the table `thresholds` of a recipe of your own, for these weights alone:"
        yield f"{json.dumps(key, ensure_ascii=False)} = {proposed.threshold:g}"
        yield ""
    yield "[subset]"
    yield (
        f"threshold = {proposed.threshold:g}  # lets {PROPOSED:.0%} of shuffled pairs through, "
        f"keeps {proposed.real:.1%} of the real ones"
    )
