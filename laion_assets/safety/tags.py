"""Safety tags by the published rule: from the categories nearest to an image (LAION-400M blog).

The input is embeddings alone, so a change of prompts does not embed an image again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.safety.prompts import Categories

TAGS: Final = ("UNLIKELY", "UNSURE", "NSFW")
"""Tags by the number of NSFW categories among the two best: 0, 1, 2."""

_ROWS_AT_ONCE: Final = 4_096
"""Rows that fit into the processor's caches, where the work is several times as fast."""


@dataclass(frozen=True)
class Tags:
    """Columns of ``schemas.SCORED``, one value per row."""

    nsfw: pa.StringArray
    nsfw_category_1: pa.StringArray
    nsfw_category_2: pa.StringArray
    underage_ranked: NDArray[np.bool_]
    animal_ranked: NDArray[np.bool_]


def tag(image_emb: NDArray[Any], categories: Categories) -> Tags:
    """Tag images by their embeddings, (n, dim) in any float type and of any length.

    If both of the two best categories are NSFW the tag is NSFW, if one is UNSURE, else UNLIKELY.
    ``underage_ranked`` means that an under-age category is first or second among the ages,
    ``animal_ranked`` that an animal category is first among the animals' categories. The category
    listed first wins a tie. Raises ``ValueError`` if the embeddings have another model's width.
    """
    if image_emb.ndim != 2 or image_emb.shape[1] != categories.dim:
        raise ValueError(
            f"embeddings of shape {image_emb.shape} do not fit categories of {categories.dim}"
            " dimensions: both must come from the same model"
        )
    sets = (categories.nsfw, categories.underage, categories.animals)
    vectors = np.concatenate([ranked.vectors for ranked in sets]).T
    ends = np.cumsum([len(ranked.flags) for ranked in sets])[:-1]
    nsfw, ages, animals = (
        np.empty((len(image_emb), places), dtype=np.intp) for places in (2, 2, 1)
    )
    for start in range(0, len(image_emb), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        scores = np.asarray(image_emb[rows], dtype=np.float32) @ vectors
        for best, of_set in zip((nsfw, ages, animals), np.split(scores, ends, 1), strict=True):
            _rank(of_set, best[rows])
    texts = pa.array(categories.nsfw.texts)
    return Tags(
        nsfw=pa.array(TAGS).take(pa.array(categories.nsfw.flags[nsfw].sum(axis=1))),
        nsfw_category_1=texts.take(pa.array(nsfw[:, 0])),
        nsfw_category_2=texts.take(pa.array(nsfw[:, 1])),
        underage_ranked=np.asarray(categories.underage.flags[ages].any(axis=1)),
        animal_ranked=categories.animals.flags[animals[:, 0]],
    )


def _rank(scores: NDArray[np.float32], best: NDArray[np.intp]) -> None:
    """Write each row's nearest categories to ``best``, (n, places), best first."""
    for place in range(best.shape[1]):
        best[:, place] = scores.argmax(axis=1)
        scores[np.arange(len(scores)), best[:, place]] = -np.inf
