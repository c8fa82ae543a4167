"""Labels for zero-shot classification: the one class that a held-out pair's caption names.

What does not belong here: which class a model finds an image to be of (``training``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from laion_assets.comparison.pool import TooFewPairsError

logger = logging.getLogger(__name__)

Rows = NDArray[np.int64]

LEAST_OF_CLASS: Final = 10
"""Fewest labelled pairs that a class is measured on."""


@dataclass(frozen=True)
class Labelled:
    """Pairs whose captions name one of the classes."""

    rows: Rows
    labels: Rows
    """Number of each row's class, (n,)."""
    classes: list[str]
    left_out: list[str]
    """The classes that too few captions name."""


def labelled(rows: Rows, captions: Sequence[str], classes: Sequence[str]) -> Labelled:
    """Label the rows, whose captions these are, and leave out the classes of too few rows.

    Raises :class:`~laion_assets.comparison.pool.TooFewPairsError` if fewer than two classes remain.
    """
    labels = labels_of(captions, classes)
    counts = np.bincount(labels[labels >= 0], minlength=len(classes)).tolist()
    few = {
        name: count for name, count in zip(classes, counts, strict=True) if count < LEAST_OF_CLASS
    }
    listed = ", ".join(f"{name} ({count})" for name, count in few.items())
    if len(classes) - len(few) < 2:
        raise TooFewPairsError(
            f"fewer than 2 of [comparison] classes are left for zero-shot classification: fewer"
            f" than {LEAST_OF_CLASS} matching held-out pairs name {listed}. Compare when the lake"
            " has more pairs, raise `held_out_share`, or choose classes that more captions name"
        )
    if few:
        logger.warning(
            f"left out of zero-shot classification, as fewer than {LEAST_OF_CLASS} matching"
            f" held-out pairs name them: {listed}"
        )
    kept = [number for number, name in enumerate(classes) if name not in few]
    of_kept = np.isin(labels, kept)
    return Labelled(
        rows=rows[of_kept],
        labels=np.searchsorted(kept, labels[of_kept]),
        classes=[classes[number] for number in kept],
        left_out=[*few],
    )


def labels_of(captions: Sequence[str], classes: Sequence[str]) -> Rows:
    """Number of the one class that each caption names as whole words, (n,); -1: none or several.

    Composed and decomposed letters are the same, and so is all white space.
    """
    words = [r"\s+".join(map(re.escape, normalize("NFC", name).split())) for name in classes]
    names = [re.compile(rf"(?<!\w){name}(?!\w)", re.IGNORECASE) for name in words]
    found = [
        [number for number, name in enumerate(names) if name.search(normalize("NFC", text))]
        for text in captions
    ]
    return np.array([one[0] if len(one) == 1 else -1 for one in found], np.int64)
