"""Ranking of pictures by how well CLIP finds that they fit their caption, and their judgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laion_assets.generation.subjects import judge, subject, with_each_thing

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel

Pictures = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]


@dataclass(frozen=True)
class Scores:
    """What is found about pictures of one caption."""

    cosines: NDArray[np.float32]
    """CLIP's cosines with the caption, (n,)."""
    verdicts: NDArray[np.bool_] | None = None
    """Whether background, colour and thing are the caption's, (n, 3); None for a caption that does
    not name them as the drawn crawl's captions do."""


class Judge:
    """CLIP as it looks at pictures; each picture is encoded once."""

    def __init__(self, clip: ClipModel) -> None:
        self._clip = clip

    def score(self, pixels: Pictures, caption: str) -> Scores:
        """Score pictures, uint8 (height, width, 3) each."""
        vectors = self._clip.encode_images([Image.fromarray(one) for one in pixels])
        cosines: NDArray[np.float32] = vectors @ self._clip.encode_texts([caption])[0]
        drawing = subject(caption)
        if drawing is None:
            return Scores(cosines)
        things = self._clip.encode_texts(with_each_thing(caption, drawing))
        return Scores(cosines, judge(drawing, pixels, vectors, things))


def ranked(cosines: NDArray[np.float32]) -> NDArray[np.int64]:
    """Row numbers by descending cosine; equal ones keep their order."""
    return np.argsort(-cosines, kind="stable").astype(np.int64)
