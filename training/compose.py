"""Web-like pictures of drawings: a drawing on a background, published, and stored in a shard.

What does not belong here: where drawings come from (``corpus``), what is learned (``train``).
"""

from __future__ import annotations

import colorsys
import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

ASPECTS = ((1, 1), (4, 3), (3, 4), (16, 9))
STORED_SIZE = 256
_BACKGROUNDS = ("white", "pastel", "gradient", "texture")
_BACKGROUND_ODDS = (0.4, 0.25, 0.2, 0.15)

Rgb = tuple[int, int, int]


def web_size(rng: np.random.Generator) -> tuple[int, int]:
    """Draw a width and a height that web pages have: 240 to 640 pixels wide."""
    across, down = ASPECTS[int(rng.integers(len(ASPECTS)))]
    width = int(rng.integers(240, 641))
    return width, max(1, round(width * down / across))


def compose(rgba: Image.Image, rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Put a drawing, moderately scaled, turned and moved, on a random background.

    Args:
        rgba: the drawing with its alpha channel; 384 pixels or more look crisp at every size.
        rng: source of all randomness; the same seed gives the same picture.
        width: width of the result, in pixels.
        height: height of the result, in pixels.

    Returns:
        An RGB picture of ``width`` by ``height`` that holds the whole drawing.
    """
    canvas = _background(rng, width, height)
    drawing = rgba.crop(rgba.getbbox() or (0, 0, *rgba.size))
    if rng.random() < 0.3:
        drawing = drawing.rotate(float(rng.uniform(-10, 10)), Image.Resampling.BICUBIC, expand=True)
    stretch = float(rng.uniform(0.93, 1.07))
    wide, high = drawing.width * stretch, float(drawing.height)
    scale = float(rng.uniform(0.55, 0.94)) * min(width / wide, height / high)
    drawing = drawing.resize(
        (max(1, round(wide * scale)), max(1, round(high * scale))), Image.Resampling.LANCZOS
    )
    left = _off_centre(rng, width - drawing.width)
    top = _off_centre(rng, height - drawing.height)
    if rng.random() < 0.2:
        _cast_shadow(canvas, drawing, left, top)
    canvas.paste(drawing, (left, top), drawing)
    return canvas


def encode(picture: Image.Image, kind: Literal["JPEG", "PNG", "WEBP"], quality: int = 85) -> bytes:
    """Encode a picture as a web server would send it."""
    out = io.BytesIO()
    if kind == "PNG":
        picture.save(out, kind)
    else:
        picture.save(out, kind, quality=quality)
    return out.getvalue()


def stored(picture: Image.Image, size: int = STORED_SIZE, quality: int = 95) -> Image.Image:
    """Apply img2dataset's "border" mode: fit into a square, pad with white, encode as JPEG."""
    scale = size / max(picture.size)
    fitted = picture.convert("RGB").resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
        Image.Resampling.BOX if scale < 1 else Image.Resampling.LANCZOS,
    )
    square = Image.new("RGB", (size, size), "white")
    square.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    return Image.open(io.BytesIO(encode(square, "JPEG", quality))).convert("RGB")


def crawled(rgba: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Compose a drawing, publish it as a site does, download it, and store it at 256 by 256."""
    picture = compose(rgba, rng, *web_size(rng))
    kind: Literal["JPEG", "WEBP"] | None
    kind = ("JPEG", "WEBP", None)[int(rng.integers(3))]  # None: as PNG, which is lossless
    if kind:
        published = encode(picture, kind, int(rng.integers(60, 96)))
        picture = Image.open(io.BytesIO(published))
    return stored(picture)


def jitter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shift brightness, contrast and saturation a little, for training only."""
    from PIL import ImageEnhance

    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = enhance(picture).enhance(float(rng.uniform(0.85, 1.15)))
    return picture


def _off_centre(rng: np.random.Generator, free: int) -> int:
    """Draw a left or top margin: most often near the middle, sometimes at an edge."""
    return round(free * float(rng.beta(3, 3)))


def _tint(rng: np.random.Generator, value_from: float = 0.82) -> Rgb:
    red, green, blue = colorsys.hsv_to_rgb(
        float(rng.random()), float(rng.uniform(0.05, 0.35)), float(rng.uniform(value_from, 1.0))
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    kind = _BACKGROUNDS[int(rng.choice(len(_BACKGROUNDS), p=_BACKGROUND_ODDS))]
    if kind == "white":
        return Image.new("RGB", (width, height), "white")
    if kind == "pastel":
        return Image.new("RGB", (width, height), _tint(rng))
    if kind == "gradient":
        return _gradient(rng, width, height)
    return _texture(rng, width, height)


def _gradient(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    angle = float(rng.uniform(0, 2 * np.pi))
    across = np.linspace(-0.5, 0.5, width)[None, :] * np.cos(angle)
    down = np.linspace(-0.5, 0.5, height)[:, None] * np.sin(angle)
    share = np.clip(across + down + 0.5, 0, 1)[:, :, None]
    start, end = np.array(_tint(rng, 0.7)), np.array(_tint(rng, 0.85))
    pixels: NDArray[np.uint8] = (start * (1 - share) + end * share).astype(np.uint8)
    return Image.fromarray(pixels)


def _texture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    canvas = Image.new("RGB", (width, height), _tint(rng))
    pen = ImageDraw.Draw(canvas)
    ink, step = _tint(rng), int(rng.integers(14, 48))
    kind = int(rng.integers(3))
    if kind == 0:
        for left in range(-height, width, 2 * step):
            pen.line([(left, height), (left + height, 0)], fill=ink, width=step // 2)
    elif kind == 1:
        radius = step // 4
        for x in range(0, width, step):
            for y in range(0, height, step):
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=ink)
    else:
        noise = rng.integers(-14, 15, (height, width, 1))
        grainy = np.clip(np.asarray(canvas).astype(int) + noise, 0, 255).astype(np.uint8)
        canvas = Image.fromarray(grainy).filter(ImageFilter.GaussianBlur(0.7))
    return canvas


def _cast_shadow(canvas: Image.Image, drawing: Image.Image, left: int, top: int) -> None:
    reach = max(2, drawing.height // 40)
    pad = 4 * reach
    mask = Image.new("L", (drawing.width + 2 * pad, drawing.height + 2 * pad))
    mask.paste(drawing.getchannel("A").point(lambda alpha: alpha // 3), (pad, pad))
    mask = mask.filter(ImageFilter.GaussianBlur(reach))
    canvas.paste((40, 40, 40), (left - pad + reach, top - pad + 2 * reach), mask)
