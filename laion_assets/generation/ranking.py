"""CLIP says which pictures fit their caption best, and how well."""

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
    """The cosine of each picture, uint8 (height, width, 3), and the caption; (n,)."""
    vectors = clip.encode_images([Image.fromarray(one) for one in pixels])
    cosines: NDArray[np.float32] = vectors @ clip.encode_texts([caption])[0]
    return cosines


def ranked(cosines: NDArray[np.float32]) -> NDArray[np.int64]:
    """Row numbers, the highest cosine first; equal ones in their order."""
    return np.argsort(-cosines, kind="stable").astype(np.int64)
