"""Makes ``data/drawings.npz``: drawings of the drawn crawl as the shipped CLIP embeds them.

`python -m tests.comparison.make_drawings` takes minutes; the tests that use it take seconds.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from laion_assets.clip.model import load_clip
from laion_assets.clip.options import ClipOptions
from laion_assets.sample_crawl.drawings import every_drawing, render

DRAWINGS: Final = Path(__file__).with_name("data") / "drawings.npz"
TINY: Final = ClipOptions(
    model="laion-assets-tiny", pretrained="laion-assets-tiny", device="cpu", precision="fp32"
)
N: Final = 1_000


def main() -> None:
    """``kind``: number in :func:`every_drawing`, uint16 (n,); row n is drawn by the seed n.
    ``vectors``: int8 (n, 256), in 127ths of each row's largest."""
    kinds = every_drawing()
    kind = np.array(random.Random(1).choices(range(len(kinds)), k=N), np.uint16)
    pictures = [
        Image.open(io.BytesIO(render(kinds[number], row))).convert("RGB")
        for row, number in enumerate(kind)
    ]
    vectors = load_clip(TINY).encode_images(pictures)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    np.savez_compressed(
        DRAWINGS, kind=kind, vectors=np.rint(vectors / largest * 127).astype(np.int8)
    )


if __name__ == "__main__":
    main()
