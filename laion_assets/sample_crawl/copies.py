"""Altered copies of pictures, as the web has them: planted to see whether they are found.

What does not belong here: how a copy is recognised.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

Colour = tuple[int, int, int]


def opened(encoded: bytes) -> Image.Image:
    """A picture in RGB."""
    with Image.open(io.BytesIO(encoded)) as image:
        return image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")


def encoded(image: Image.Image, quality: int = 90, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def _resized(image: Image.Image, chance: random.Random) -> bytes:
    scale = chance.choice([0.4, 0.5, 0.7, 1.5, 2])
    size = round(image.width * scale), round(image.height * scale)
    return encoded(image.resize(size, Image.Resampling.LANCZOS))


def _recompressed(image: Image.Image, chance: random.Random) -> bytes:
    return encoded(image, chance.choice([20, 30, 50]), chance.choice(["JPEG", "WEBP"]))


def _cropped(image: Image.Image, chance: random.Random) -> bytes:
    """5 % of either side is cut off, wherever."""
    width, height = round(image.width * 0.95), round(image.height * 0.95)
    left, top = chance.randint(0, image.width - width), chance.randint(0, image.height - height)
    return encoded(image.crop((left, top, left + width, top + height)))


def _bordered(image: Image.Image, chance: random.Random) -> bytes:
    any_colour = (chance.randint(0, 255), chance.randint(0, 255), chance.randint(0, 255))
    colour = chance.choice([(0, 0, 0), (255, 255, 255), any_colour])
    width = round(min(image.size) * chance.choice([0.03, 0.06, 0.1]))
    return encoded(ImageOps.expand(image, width, colour))


def _watermarked(image: Image.Image, chance: random.Random) -> bytes:
    over = Image.new("RGBA", image.size, (0, 0, 0, 0))
    font = ImageFont.load_default(max(12, image.width // 10))
    place = image.width * chance.uniform(0.05, 0.3), image.height * chance.uniform(0.3, 0.8)
    ImageDraw.Draw(over).text(
        place,
        "© stock photo",
        (255, 255, 255, 130),
        font,
        stroke_width=1,
        stroke_fill=(0, 0, 0, 90),
    )
    return encoded(Image.alpha_composite(image.convert("RGBA"), over).convert("RGB"))


def _mirrored(image: Image.Image, _: random.Random) -> bytes:
    return encoded(ImageOps.mirror(image))


def _recoloured(image: Image.Image, chance: random.Random) -> bytes:
    """Grey, brighter or darker, with more or less contrast, or another hue."""
    way = chance.choice(["grey", "brightness", "contrast", "hue"])
    if way == "grey":
        image = ImageOps.grayscale(image).convert("RGB")
    elif way == "hue":
        values = np.array(image.convert("HSV"))
        values[..., 0] += chance.randint(10, 40)
        image = Image.fromarray(values, "HSV").convert("RGB")
    else:
        kind = ImageEnhance.Brightness if way == "brightness" else ImageEnhance.Contrast
        image = kind(image).enhance(chance.choice([0.7, 1.3]))
    return encoded(image)


COPIES: Final[Mapping[str, Callable[[Image.Image, random.Random], bytes]]] = {
    "resized": _resized,
    "recompressed": _recompressed,
    "cropped": _cropped,
    "bordered": _bordered,
    "watermarked": _watermarked,
    "mirrored": _mirrored,
    "recoloured": _recoloured,
}
"""Kind -> what makes a copy of that kind of a picture, the same for the same random numbers."""
