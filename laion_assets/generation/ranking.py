"""Ranking of pictures by how well CLIP finds that they fit their caption."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from laion_assets.clip.model import ClipModel


def similarities(
    clip: ClipModel, pixels: Iterable[NDArray[np.uint8]], caption: str
) -> NDArray[np.float32]:
    """Cosines of pictures, uint8 (height, width, 3) each, with the caption: (n,)."""
    vectors = clip.encode_images([Image.fromarray(one) for one in pixels])
    cosines: NDArray[np.float32] = vectors @ clip.encode_texts([caption])[0]
    return cosines


def ranked(cosines: NDArray[np.float32]) -> NDArray[np.int64]:
    """Row numbers by descending cosine; equal ones keep their order."""
    return np.argsort(-cosines, kind="stable").astype(np.int64)
