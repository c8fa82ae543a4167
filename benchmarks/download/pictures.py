"""Seeded photo-like pictures for the image host: of the web's usual sizes, and large ones.

They are fractal noise in colour, with grain and sharp-edged shapes, and cost a decoder and an
encoder about as much as photos of their size and weight. Sides of 300 to 1,600 pixels and a median
of some 100 KB are what image pairs of the web have. 85 in 100 are JPEG (a third of them
progressive), 10 PNG (a third of them with transparency), and 5 WebP.

Large ones are JPEGs as cameras and phones write them, a tenth of them progressive: 3,000 to 6,000
pixels a side, with less grain: a tenth to three tenths of a byte a pixel.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

N_PICTURES: Final = 100

_SIDES: Final = (300, 1600)
_MEDIAN_SIDE: Final = 800
_RATIOS: Final = (3 / 4, 1, 4 / 3, 3 / 2, 16 / 9)
_GRAIN: Final = 4.0

N_LARGE: Final = 10
_LARGE_SIDES: Final = (3000, 6000)
_LARGE_RATIOS: Final = (3 / 4, 4 / 3, 3 / 2)
_LARGE_GRAIN: Final = 3.0

_MIN_BYTES: Final = 5_500  # ours refuses images below 5,000


def make_pictures(folder: Path, n: int = N_PICTURES, seed: int = 0) -> None:
    """Write ``n`` pictures named ``000.jpg``, ``001.png`` and so on.

    Raises ``ValueError`` if one is so small that it would be refused.
    """
    for number in range(n):
        rng = np.random.default_rng((seed, number))
        suffix = _suffix(number)
        encoded = _encode(_picture(rng), suffix, number, rng)
        if len(encoded) < _MIN_BYTES:
            raise ValueError(f"picture {number} has only {len(encoded)} bytes")
        (folder / f"{number:03d}.{suffix}").write_bytes(encoded)


def make_large_pictures(folder: Path, n: int = N_LARGE, seed: int = 0) -> None:
    """Write ``n`` JPEGs named ``000.jpg`` and so on, with a longer side of 3,000 to 6,000
    pixels."""
    for number in range(n):
        rng = np.random.default_rng((seed, number, 1))
        long = int(rng.integers(*_LARGE_SIDES))
        ratio = float(rng.choice(_LARGE_RATIOS))
        width, height = (long, round(long / ratio)) if ratio > 1 else (round(long * ratio), long)
        # What is finer than three pixels is grain alone: painting all sizes takes too long.
        small = _painted(width // 3, height // 3, rng, 0.0)
        grain = rng.standard_normal((height, width, 1), np.float32) * _LARGE_GRAIN
        pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) + grain
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        quality = int(rng.integers(85, 96))
        picture.save(folder / f"{number:03d}.jpg", quality=quality, progressive=number % 10 == 9)


def _suffix(number: int) -> str:
    place = number % 20
    return "webp" if place == 7 else "png" if place in (3, 13) else "jpg"


def _encode(image: Image.Image, suffix: str, number: int, rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    quality = int(rng.integers(75, 94))
    if suffix == "jpg":
        image.save(buffer, "JPEG", quality=quality, progressive=number % 3 == 0)
    elif suffix == "webp":
        image.save(buffer, "WEBP", quality=quality)
    else:
        # Lossless, grain is heavy: PNGs are smaller pictures, smoothed until they look drawn.
        image.thumbnail((600, 600))
        image = image.filter(ImageFilter.MedianFilter(5))
        if number % 3 == 0:
            mask = Image.new("L", image.size, 0)
            ImageDraw.Draw(mask).ellipse((0, 0, image.width - 1, image.height - 1), fill=255)
            image.putalpha(mask)
        image.save(buffer, "PNG")
    return buffer.getvalue()


def _picture(rng: np.random.Generator) -> Image.Image:
    low, high = _SIDES
    side = float(np.clip(_MEDIAN_SIDE * rng.lognormal(0, 0.45), low, high))
    ratio = float(rng.choice(_RATIOS))
    width = round(float(np.clip(side * ratio**0.5, low, high)))
    height = round(float(np.clip(side / ratio**0.5, low, high)))
    return _painted(width, height, rng, _GRAIN)


def _painted(width: int, height: int, rng: np.random.Generator, grain_sigma: float) -> Image.Image:
    pixels = np.full((height, width, 3), 128, np.float32)
    cells, weight = 2, 60.0
    while cells < max(width, height) / 2:
        noise = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        octave = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(octave, np.float32) - 128) / 64 * weight
        cells, weight = cells * 2, weight * 0.6
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    _draw_shapes(image, rng)
    grain = rng.normal(0, grain_sigma, (height, width, 1)).astype(np.float32)
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def _draw_shapes(image: Image.Image, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(3, 12))):
        x, y = rng.integers(0, image.width), rng.integers(0, image.height)
        w, h = rng.integers(10, image.width // 3), rng.integers(10, image.height // 3)
        colour = tuple(int(part) for part in rng.integers(0, 256, 3))
        box = (int(x), int(y), int(x + w), int(y + h))
        if rng.random() < 0.5:
            draw.ellipse(box, fill=colour)
        else:
            draw.rectangle(box, fill=colour)
