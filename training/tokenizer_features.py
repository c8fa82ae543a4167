"""What the shipped CLIP sees in decoded pictures, as a loss of the shipped autoencoder.

Differences of pixels leave edges soft, and CLIP finds soft drawings less like their captions. So
decoded pictures of 64 pixels are compared with the drawings as shards store them, at 256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from laion_assets.clip.model import ClipModel, load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.tables import write_array

from .compose import STORED_SIZE
from .tokenizer_pictures import drawings

SEEN: Final = 2_000
"""Drawings, the first ones, whose embeddings are compared."""


def shipped_clip() -> ClipModel:
    return load_clip(ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny"))


class Features:
    """The shipped CLIP's image tower, and embeddings of the first ``n`` drawings as stored.

    ``cache``: a folder that keeps the embeddings, (n, dim).
    """

    def __init__(self, cache: Path, n: int = SEEN) -> None:
        clip = shipped_clip()
        path = cache / "tokenizer" / f"stored-{n}-{clip.version}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            stored, _ = drawings(n, STORED_SIZE, held_out=False)
            write_array(path, clip.encode_images([Image.fromarray(one) for one in stored]))
        self.vectors = torch.from_numpy(np.load(path))
        self._tower = clip.module.requires_grad_(False)
        about = clip.module.visual.preprocess_cfg
        self._size = clip.module.visual.image_size[0]
        self._mean, self._std = (
            torch.tensor(about[name]).view(1, 3, 1, 1) for name in ("mean", "std")
        )

    def difference(self, decoded: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Mean of 1 less the cosine between decoded pictures, (n, 3, side, side) from -1 to 1, and
        the stored drawings of these numbers, (n,)."""
        size = (self._size, self._size)
        # Antialiased, torch's bicubic filter is Pillow's.
        larger = functional.interpolate(decoded, size, mode="bicubic", antialias=True)
        floats = (larger.clamp(-1, 1).add(1).div(2) - self._mean) / self._std
        seen = self._tower.encode_image(floats.contiguous(memory_format=torch.channels_last))
        return 1 - functional.cosine_similarity(seen, self.vectors[rows]).mean()
