"""The published rule: tags from the categories nearest to an image (LAION-400M blog).

Only embeddings go in, so a change of prompts re-tags without embedding an image again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.safety.prompts import Categories, Ranked

TAGS: Final = ("UNLIKELY", "UNSURE", "NSFW")
"""By how many of the two best categories are NSFW."""

_ROWS_AT_ONCE: Final = 16_384


@dataclass(frozen=True)
class Tags:
    """Columns of ``schemas.SCORED``, one value a row."""

    nsfw: NDArray[np.str_]
    nsfw_category_1: NDArray[np.str_]
    nsfw_category_2: NDArray[np.str_]
    underage_ranked: NDArray[np.bool_]
    animal_ranked: NDArray[np.bool_]


def tag(image_emb: NDArray[Any], categories: Categories) -> Tags:
    """Tag images by their embeddings, (n, dim) in any float type and of any length.

    The two best of the categories both NSFW: NSFW; one: UNSURE; none: UNLIKELY.
    ``underage_ranked``: an under-age category is first or second among the ages.
    ``animal_ranked``: an animal category is first among the animals' categories.
    Of equal categories the one listed first ranks first. Raises ``ValueError`` if the
    embeddings are of another model's size.
    """
    if image_emb.ndim != 2 or image_emb.shape[1] != categories.dim:
        raise ValueError(
            f"embeddings of shape {image_emb.shape} against categories of {categories.dim}"
            " dimensions: both must come from the same model"
        )
    sets = {
        "nsfw": (categories.nsfw, 2),
        "ages": (categories.underage, 2),
        "animals": (categories.animals, 1),
    }
    best = {
        name: np.empty((len(image_emb), places), dtype=np.intp)
        for name, (_, places) in sets.items()
    }
    for start in range(0, len(image_emb), _ROWS_AT_ONCE):
        rows = np.asarray(image_emb[start : start + _ROWS_AT_ONCE], dtype=np.float32)
        for name, (ranked, places) in sets.items():
            best[name][start : start + len(rows)] = _nearest(rows, ranked, places)
    nsfw, ages, animals = best.values()
    texts = np.array(categories.nsfw.texts)
    return Tags(
        nsfw=np.array(TAGS)[categories.nsfw.flags[nsfw].sum(axis=1)],
        nsfw_category_1=texts[nsfw[:, 0]],
        nsfw_category_2=texts[nsfw[:, 1]],
        underage_ranked=np.asarray(categories.underage.flags[ages].any(axis=1)),
        animal_ranked=categories.animals.flags[animals[:, 0]],
    )


def _nearest(rows: NDArray[np.float32], ranked: Ranked, places: int) -> NDArray[np.intp]:
    """Indices (n, places) of each row's nearest categories, best first."""
    scores = rows @ ranked.vectors.T
    best = np.empty((len(rows), places), dtype=np.intp)
    for place in range(places):
        best[:, place] = scores.argmax(axis=1)
        scores[np.arange(len(rows)), best[:, place]] = -np.inf
    return best
