"""``python -m benchmarks.duplicates.picture``: pictures and their copies, for the docs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.duplicates.planted import stored_copies, vendors
from laion_assets.near_duplicates.signature import SIGNATURE, likeness, look
from laion_assets.sample_crawl.copies import opened

PICTURE: Final = Path(__file__).parents[2] / "docs" / "images" / "near-duplicates.jpg"
_THINGS: Final = 2
_TILE: Final = 120
_LINE: Final = 34


def main() -> None:
    """Draw a row for each picture and its copies, with their likeness to the row's first one; at
    the end of each row stands another vendor's picture of the same thing."""
    things = vendors()
    rows = []
    for pair in things[:: len(things) // _THINGS][:_THINGS]:
        for name, other in (pair, pair[::-1]):
            images = stored_copies(name, random.Random(1))
            images["other vendor's"] = next(iter(stored_copies(other, random.Random(1)).values()))
            rows.append(images)
    page = Image.new("RGB", (len(rows[0]) * (_TILE + 8) + 8, len(rows) * (_TILE + _LINE)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for down, images in enumerate(rows):
        signatures = np.zeros(len(images), SIGNATURE)
        for number, one in enumerate(images.values()):
            signatures["looks"][number] = look(one.encoded, one.original_width, one.original_height)
        alike, _ = likeness(signatures[[0] * len(images)], signatures)
        for across, (kind, one) in enumerate(images.items()):
            left, top = 8 + across * (_TILE + 8), down * (_TILE + _LINE)
            small = opened(one.encoded)
            small.thumbnail((_TILE, _TILE))
            page.paste(small, (left, top))
            pen.text((left, top + _TILE + 2), f"{kind}\n{alike[across]:.3f}", "black", font)
    page.save(PICTURE, quality=85)


if __name__ == "__main__":
    main()
