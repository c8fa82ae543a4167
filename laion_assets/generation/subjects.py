"""Judgement of drawings by what their captions say: background, colour and thing.

It knows the captions of the drawn crawl alone, whose words and colours ``sample_crawl.drawings``
has. Background and colour are read from the pixels. The thing is the one in whose caption CLIP,
which ranks the samples, too, finds the picture most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.sample_crawl.drawings import (
    BACKGROUNDS,
    COLOURS,
    THINGS,
    Drawing,
    Rgb,
    every_drawing,
)

JUDGED: Final = ("background", "colour", "thing")
_FRAME: Final = 24
"""The outermost pixels, one in so many of a side, tell the background's colour."""
_DIFFERENT: Final = 80.0
"""Distance in RGB from the background's colour from which a pixel is the thing's."""
_LEAST: Final = 0.02
"""Smallest share of a picture's pixels that make a thing."""


@cache
def _by_caption() -> Mapping[str, Drawing]:
    return {text.lower(): one for one in every_drawing() for text in one.captions()}


def subject(caption: str) -> Drawing | None:
    """What a caption of the drawn crawl names; None for any other caption."""
    return _by_caption().get(caption.lower())


def judge(
    drawing: Drawing,
    pixels: Iterable[NDArray[np.uint8]],
    vectors: NDArray[np.float32],
    things: NDArray[np.float32],
) -> NDArray[np.bool_]:
    """Judge pictures by what they should show: (n, 3), in the order of ``JUDGED``.

    Args:
        drawing: what they should show.
        pixels: the pictures, uint8 (height, width, 3) each.
        vectors: CLIP's vectors of the pictures, (n, d).
        things: CLIP's vectors of :func:`with_each_thing`, (things, d).
    """
    number = list(THINGS).index(drawing.thing)
    seen = [colours(one) for one in pixels]
    return np.array(
        [
            (ground == drawing.background, ink == drawing.colour, thing == number)
            for (ground, ink), thing in zip(seen, (vectors @ things.T).argmax(1), strict=True)
        ],
        np.bool_,
    ).reshape(-1, len(JUDGED))


def with_each_thing(caption: str, drawing: Drawing) -> list[str]:
    """A drawing's caption with each thing in its place, in the order of ``THINGS``."""
    return [caption.lower().replace(f" {drawing.thing}", f" {thing}") for thing in THINGS]


def colours(pixels: NDArray[np.uint8]) -> tuple[str, str | None]:
    """Names of a picture's background, and of the colour of most pixels that differ from it.

    The colour is None if hardly any pixels differ.
    """
    values = pixels.astype(np.float32)
    wide = max(1, pixels.shape[0] // _FRAME)
    inner = np.zeros(pixels.shape[:2], np.bool_)
    inner[wide:-wide, wide:-wide] = True
    ground = np.median(values[~inner], axis=0)
    ink = values[np.linalg.norm(values - ground, axis=2) > _DIFFERENT]
    name = _nearest(ground[None], BACKGROUNDS)[0]
    if len(ink) < _LEAST * inner.size:
        return name, None
    names, counts = np.unique(_nearest(ink, COLOURS), return_counts=True)
    return name, str(names[counts.argmax()])


@dataclass(frozen=True)
class Shares:
    """Shares of pictures that have their caption's background, colour and thing."""

    background: float
    colour: float
    thing: float
    pictures: int

    @classmethod
    def of(cls, verdicts: NDArray[np.bool_]) -> Shares:
        """Shares of verdicts, (n, 3)."""
        background, colour, thing = verdicts.mean(0).tolist()
        return cls(background, colour, thing, len(verdicts))


def _nearest(values: NDArray[np.float32], named: Mapping[str, Rgb]) -> list[str]:
    """Names of the colours nearest to RGB values, (n, 3)."""
    table = np.array(list(named.values()), np.float32)
    rows = np.linalg.norm(values[:, None] - table, axis=2).argmin(1)
    return [list(named)[row] for row in rows]
