"""Watermarks as web sites draw them over pictures, and words that are none.

What does not belong here: the pictures below them (``compose``), what is learned of them
(``watermark_head``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_NAMES = (
    *("stockhaus", "pixelbay", "iconmarkt", "drawly", "artdepot", "clipwerk", "vectoria"),
    *("picfarm", "imagoteka", "sketchpool", "grafix", "photonest", "emojiland", "freebits"),
)
_ENDINGS = (".com", ".net", ".org", "", "", " images", " stock", " preview")
_WORDS = (
    "SALE",
    "Hello",
    "NEW",
    "Happy day",
    "Menu",
    "Welcome",
    "OPEN",
    "Thank you",
    "2024",
    "Love",
)

Style = Callable[[Image.Image, np.random.Generator], Image.Image]
"""Draws over an RGB picture and returns the result."""


def name_of(rng: np.random.Generator) -> str:
    """Draw the name of a site."""
    name = str(rng.choice(_NAMES)) + str(rng.choice(_ENDINGS))
    return name.upper() if rng.random() < 0.3 else name


def corner(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A site's name in a corner."""
    layer, pen = _layer(picture)
    font = _font(picture, rng.uniform(0.05, 0.09))
    text = name_of(rng)
    left, top, right, bottom = pen.textbbox((0, 0), text, font)
    pad = max(3, picture.width // 60)
    x = pad if rng.random() < 0.5 else picture.width - (right - left) - pad
    y = pad if rng.random() < 0.3 else picture.height - bottom - pad
    _write(pen, (x - left, y - top), text, font, rng)
    return _over(picture, layer)


def notice(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A copyright notice along the lower edge."""
    layer, pen = _layer(picture)
    font = _font(picture, rng.uniform(0.04, 0.06))
    text = f"© {int(rng.integers(1998, 2024))} {name_of(rng)}"
    right = pen.textbbox((0, 0), text, font)[2]
    x = float(rng.uniform(0, max(1, picture.width - right)))
    _write(pen, (x, picture.height * 0.97 - font.size), text, font, rng)
    return _over(picture, layer)


def centre(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A large name across the middle, often at an angle."""
    angle = float(rng.choice([0, 20, 30, 45, -30]))
    text = name_of(rng)
    font = _font(picture, min(0.2, 1.5 / len(text)))
    return _turned(picture, angle, lambda pen, size: _middle(pen, size, text, font, rng))


def tiles(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A name repeated over the whole picture."""
    text, font = name_of(rng), _font(picture, rng.uniform(0.05, 0.08))
    step = int(font.size * rng.uniform(2.0, 3.5))

    def paint(pen: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
        ink = _ink(rng, 60, 130)
        wide = int(pen.textlength(text, font) + font.size)
        for row, y in enumerate(range(0, size[1], step)):
            for x in range(-(row % 2) * wide // 2, size[0], wide):
                pen.text((x, y), text, font=font, fill=ink)

    return _turned(picture, float(rng.choice([20, 30, 45])), paint)


def badge(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A logo, a disc with initials, in a corner or in the middle."""
    layer, pen = _layer(picture)
    size = int(min(picture.size) * rng.uniform(0.14, 0.3))
    places = [0.04, 0.5, 0.96]
    x, y = (
        int((whole - size) * float(rng.choice(places))) for whole in (picture.width, picture.height)
    )
    pen.ellipse([x, y, x + size, y + size], fill=_ink(rng, 90, 180))
    font = ImageFont.load_default(size * 0.45)
    pen.text(
        (x + size / 2, y + size / 2),
        name_of(rng)[:2].title(),
        font=font,
        anchor="mm",
        fill=(255, 255, 255, 220),
    )
    return _over(picture, layer)


def strip(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A translucent band with a name in it."""
    layer, pen = _layer(picture)
    high = int(picture.height * rng.uniform(0.09, 0.16))
    y = int((picture.height - high) * float(rng.choice([0.0, 0.5, 1.0])))
    pen.rectangle([0, y, picture.width, y + high], fill=(20, 20, 20, int(rng.integers(70, 150))))
    font = ImageFont.load_default(high * 0.6)
    pen.text(
        (picture.width / 2, y + high / 2),
        name_of(rng),
        font=font,
        anchor="mm",
        fill=(255, 255, 255, int(rng.integers(150, 240))),
    )
    return _over(picture, layer)


def stamp(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A turned stamp: a frame with a word in it."""
    word = str(rng.choice(["SAMPLE", "PREVIEW", "COPYRIGHT", "DRAFT", "DEMO"]))
    ink = (int(rng.integers(120, 220)), 30, 40, int(rng.integers(90, 170)))

    def paint(pen: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
        font = _font(picture, 0.9 / len(word))
        middle = size[0] / 2, size[1] / 2
        box = pen.textbbox(middle, word, font, anchor="mm")
        pad = font.size * 0.3
        frame = [box[0] - pad, box[1] - pad, box[2] + pad, box[3] + pad]
        pen.rounded_rectangle(frame, radius=pad, outline=ink, width=max(2, int(font.size / 9)))
        pen.text(middle, word, font=font, anchor="mm", fill=ink)

    return _turned(picture, float(rng.uniform(-35, 35)), paint)


def cross(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Two lines from corner to corner, and a name where they meet."""
    layer, pen = _layer(picture)
    ink, width = _ink(rng, 70, 150), max(1, picture.width // 160)
    pen.line([(0, 0), picture.size], fill=ink, width=width)
    pen.line([(0, picture.height), (picture.width, 0)], fill=ink, width=width)
    _middle(pen, picture.size, name_of(rng), _font(picture, rng.uniform(0.06, 0.1)), rng)
    return _over(picture, layer)


def words(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A large opaque word, which belongs to the picture as on a poster: no watermark."""
    layer, pen = _layer(picture)
    word = str(rng.choice(_WORDS))
    font = _font(picture, min(0.22, 1.1 / len(word)))
    y = picture.height * float(rng.choice([0.14, 0.86]))
    ink = tuple(int(value) for value in rng.integers(0, 140, 3))
    pen.text((picture.width / 2, y), word, font=font, anchor="mm", fill=(*ink, 255))
    return _over(picture, layer)


TAUGHT: Mapping[str, Style] = {
    "corner": corner, "notice": notice, "centre": centre, "tiles": tiles, "badge": badge,
}  # fmt: skip
"""Styles that the head is taught."""
HELD_OUT: Mapping[str, Style] = {"strip": strip, "stamp": stamp, "cross": cross}
"""Styles that it is judged by alone."""


def _layer(picture: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    layer = Image.new("RGBA", picture.size)
    return layer, ImageDraw.Draw(layer)


def _over(picture: Image.Image, layer: Image.Image) -> Image.Image:
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def _turned(
    picture: Image.Image,
    angle: float,
    paint: Callable[[ImageDraw.ImageDraw, tuple[int, int]], None],
) -> Image.Image:
    """Paint on a larger layer, turn it, and lay its middle over the picture."""
    side = int(1.5 * max(picture.size))
    layer = Image.new("RGBA", (side, side))
    paint(ImageDraw.Draw(layer), layer.size)
    layer = layer.rotate(angle, Image.Resampling.BICUBIC)
    left, top = (side - picture.width) // 2, (side - picture.height) // 2
    return _over(picture, layer.crop((left, top, left + picture.width, top + picture.height)))


def _font(picture: Image.Image, share: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(max(9.0, picture.width * float(share)))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _ink(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int, int]:
    """White, grey or black, translucent."""
    shade = int(rng.choice([255, 255, 128, 40, 0]))
    return shade, shade, shade, int(rng.integers(low, high))


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont,
    rng: np.random.Generator,
) -> None:
    """Write a text that is seen on light and on dark ground, as sites do: with a shadow."""
    alpha = int(rng.integers(120, 230))
    light = bool(rng.random() < 0.6)
    ink, shadow = ((255,) * 3, (0,) * 3) if light else ((30,) * 3, (255,) * 3)
    pen.text((place[0] + 1, place[1] + 1), text, font=font, fill=(*shadow, alpha * 2 // 3))
    pen.text(place, text, font=font, fill=(*ink, alpha))


def _middle(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont,
    rng: np.random.Generator,
) -> None:
    alpha = int(rng.integers(70, 160))
    x, y = size[0] / 2, size[1] / 2
    for offset, shade in ((1, 0), (0, 255)):
        ink = (shade, shade, shade, alpha)
        pen.text((x + offset, y + offset), text, font=font, anchor="mm", fill=ink)
