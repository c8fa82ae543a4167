"""The split of drawings into those that train the model, calibrate its threshold, and judge it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .corpus import Glyph, held_out_styles

SEED = 20211103
CAPTIONS = 500


@dataclass(frozen=True)
class Split:
    """``train`` has every drawing of the training styles; ``test`` and ``calibration`` have 500
    disjoint concepts each, with one drawing of a held-out style per concept."""

    train: list[Glyph]
    test: list[Glyph]
    calibration: list[Glyph]


def split(corpus: list[Glyph], seed: int = SEED) -> Split:
    """Split the corpus by style; training sees the test's concepts in other styles."""
    held_out = held_out_styles()
    train = [glyph for glyph in corpus if glyph.style not in held_out]
    drawn: dict[str, list[Glyph]] = {}
    for glyph in corpus:
        if glyph.style in held_out:
            drawn.setdefault(glyph.concept, []).append(glyph)
    rng = np.random.default_rng(seed)
    concepts = rng.permutation(sorted(drawn))[: 2 * CAPTIONS]
    picked = [drawn[concept][int(rng.integers(len(drawn[concept])))] for concept in concepts]
    return Split(train, test=picked[:CAPTIONS], calibration=picked[CAPTIONS:])
