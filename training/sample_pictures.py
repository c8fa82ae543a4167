"""The sample crawl's pictures as a site would publish them, and bodies that are bad pictures."""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from laion_assets.files import atomic_path

from .compose import compose, web_size
from .corpus import DEFAULT_CACHE, Glyph, rasterise

SEED = 20000105
MIN_BYTES = 5_000


@dataclass
class Studio:
    """The pictures made so far, by file name."""

    cache: Path
    content: dict[str, bytes] = field(default_factory=dict)

    def make(self, glyph: Glyph, purpose: str = "") -> str:
        """Compose, encode and keep one picture of ``glyph``; return its file name.

        Raises ``ValueError`` if another picture has the same name.
        """
        rng = np.random.default_rng([SEED, zlib.crc32(f"{glyph.concept}{purpose}".encode()),
                                     zlib.crc32(glyph.style.encode())])  # fmt: skip
        kept = self.cache / f"{glyph.style}-{glyph.concept}{purpose}"
        if not kept.is_file():
            data, suffix = published(rasterise(glyph, DEFAULT_CACHE, 512), rng)
            with atomic_path(kept) as beside:
                beside.write_bytes(suffix.encode().ljust(8) + data)
        stored = kept.read_bytes()
        suffix, data = stored[:8].decode().strip(), stored[8:]
        slug = re.sub(r"[^a-z0-9]+", "-", glyph.name.lower()).strip("-")
        file = f"{glyph.style}/{slug}{purpose}{suffix}"
        if self.content.setdefault(file, data) != data:
            raise ValueError(f"two pictures are called {file}")
        return file


def published(drawing: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    """Compose a picture as a site would publish it.

    Returns its bytes, 5,000 or more, and the file name's suffix.
    """
    width, height = web_size(rng)
    kind = ("jpg", "webp", "png", "alpha", "palette")[
        int(rng.choice(5, p=[0.5, 0.38, 0.04, 0.05, 0.03]))
    ]
    if kind in ("alpha", "palette"):
        side = int(rng.integers(160, 260))
        picture = drawing.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        if kind == "palette":
            picture = picture.quantize(128)
        data = _png(picture)
        if MIN_BYTES + 200 <= len(data) <= 40_000:
            return data, ".png"
        kind = "jpg"
    scene = compose(drawing, rng, width, height)
    if kind == "png":
        data = _png(scene)
        if MIN_BYTES + 200 <= len(data) <= 40_000:
            return data, ".png"
        kind = "webp"
    for quality in (int(rng.integers(62, 80)), 88, 95, 98):
        data = _lossy(scene, kind, quality)
        if len(data) >= MIN_BYTES + 200:
            return data, f".{kind}"
    larger = scene.resize((scene.width * 2, scene.height * 2), Image.Resampling.LANCZOS)
    for quality in (85, 95, 98):
        data = _lossy(larger, "jpg", quality)
        if len(data) >= MIN_BYTES + 200:
            return data, ".jpg"
    return _png(scene), ".png"


def special_files(picture: Image.Image) -> dict[str, bytes]:
    """Bodies that are bad pictures in various ways, by names that say how."""
    made: dict[str, bytes] = {}
    made["icon.png"] = _png(picture.resize((32, 32)))
    base = _lossy(picture.resize((200, 200)), "jpg", 60)
    made["4999.jpg"] = _jpeg_of_length(base, 4_999)
    made["5000.jpg"] = _jpeg_of_length(base, 5_000)
    whole = _lossy(picture.resize((480, 480)), "jpg", 85)
    made["truncated.jpg"] = whole[: len(whole) * 6 // 10]
    png = bytearray(_png(picture.resize((240, 240))))
    middle = len(png) // 2
    png[middle : middle + 200] = bytes(200)
    made["corrupt.png"] = bytes(png)
    story = "".join(
        f"<p>Paragraph {number} of a page that is not a picture.</p>\n" for number in range(120)
    )
    made["page.html"] = f"<!doctype html>\n<title>Sign in</title>\n{story}".encode()
    dots = "".join(f'<circle cx="{x}" cy="{x * 7 % 200}" r="4"/>' for x in range(0, 400, 2))
    made["drawing.svg"] = f'<svg xmlns="http://www.w3.org/2000/svg">{dots}</svg>'.encode()
    small = picture.resize((160, 160))
    turned = [small.rotate(angle) for angle in (0, 30, 60)]
    made["plain.gif"] = _frames(turned[:1], "GIF")
    made["bitmap.bmp"] = _frames(turned[:1], "BMP")
    made["animated.gif"] = _frames(turned, "GIF")
    made["animated.webp"] = _frames(turned, "WEBP", quality=80)
    made["animated.png"] = _frames(turned, "PNG")
    made["bomb.png"] = _bomb_png(12_000, 12_000)
    made["bomb.jpg"] = _with_jpeg_size(whole, 65_000, 65_000)
    for name, data in made.items():
        if len(data) < MIN_BYTES and name not in ("icon.png", "4999.jpg"):
            raise ValueError(f"{name} has {len(data)} bytes and would be refused as too small")
    return {f"special/{name}": data for name, data in made.items()}


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _lossy(picture: Image.Image, kind: str, quality: int) -> bytes:
    out = io.BytesIO()
    if kind == "webp":
        picture.save(out, "WEBP", quality=quality, method=4)
    else:
        picture.save(out, "JPEG", quality=quality, progressive=quality % 3 == 0)
    return out.getvalue()


def _frames(pictures: list[Image.Image], kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    if len(pictures) > 1:
        options |= {"save_all": True, "append_images": pictures[1:], "duration": 200, "loop": 0}
    pictures[0].save(out, kind, **options)
    return out.getvalue()


def _jpeg_of_length(data: bytes, length: int) -> bytes:
    """Add a comment that fills a JPEG up to exactly ``length`` bytes."""
    missing = length - len(data) - 4
    if missing < 0:
        raise ValueError(f"the picture has {len(data)} bytes already")
    comment = b"\xff\xfe" + struct.pack(">H", missing + 2) + b" " * missing
    return data[:2] + comment + data[2:]


def _with_jpeg_size(data: bytes, width: int, height: int) -> bytes:
    """Change the size that a JPEG's frame header declares, and nothing else."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def _bomb_png(width: int, height: int) -> bytes:
    """Make a valid black PNG of one bit per pixel: kilobytes that unpack to megabytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
