"""Contact sheet: some of a segment's images with their captions, for people to look at."""

from __future__ import annotations

import io
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from laion_assets.download.shard_files import read_shard, tars_in
from laion_assets.download.tars import ImageBytes

MAX_BYTES: Final = 150_000
SHARDS_READ: Final = 8
"""Shards of a large segment that a sheet draws from."""

_COLUMNS: Final = 6
_TILE: Final = 150
_GAP: Final = 8
_FONT_SIZE: Final = 12
_CAPTION_LINES: Final = 2
_CAPTION_CHARS: Final = 25
_QUALITIES: Final = (85, 70, 55, 40, 25, 10)


@dataclass(frozen=True, order=True)
class Sample:
    """One picture of a sheet: the tar and key of its bytes, and its caption."""

    tar: Path
    key: str
    caption: str


def contact_sheet(shards: Path, n: int = 24, seed: int = 0) -> bytes:
    """JPEG of at most 150 KB: ``n`` images drawn at random from a folder of shards or a
    partition."""
    return sheet(_draw(shards, n, seed))


def sheet(samples: Sequence[Sample]) -> bytes:
    """JPEG of at most 150 KB: the samples in order; a grey tile if an image does not decode."""
    return _sheet(samples, _tiles(samples))


def sheet_and_tiles(samples: Sequence[Sample]) -> tuple[bytes, list[bytes]]:
    """What :func:`sheet` returns, and a small JPEG of each sample."""
    tiles = _tiles(samples)
    made = []
    for tile in tiles:
        buffer = io.BytesIO()
        tile.save(buffer, "JPEG", quality=_QUALITIES[0])
        made.append(buffer.getvalue())
    return _sheet(samples, tiles), made


def _sheet(samples: Sequence[Sample], tiles: Sequence[Image.Image]) -> bytes:
    line = _FONT_SIZE + 3
    row_height = _TILE + _CAPTION_LINES * line + _GAP
    rows = max(1, -(-len(samples) // _COLUMNS))
    size = (_COLUMNS * (_TILE + _GAP) + _GAP, rows * row_height + _GAP)
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(_FONT_SIZE)
    if not samples:
        pen.text((_GAP, _GAP), "no images", "black", font)
    for i, (sample, small) in enumerate(zip(samples, tiles, strict=True)):
        left = _GAP + i % _COLUMNS * (_TILE + _GAP)
        top = _GAP + i // _COLUMNS * row_height
        corner = (left + (_TILE - small.width) // 2, top + (_TILE - small.height) // 2)
        page.paste(small, corner)
        lines = textwrap.wrap(
            sample.caption, _CAPTION_CHARS, max_lines=_CAPTION_LINES, placeholder="…"
        )
        for number, text in enumerate(lines):
            pen.text((left, top + _TILE + 2 + number * line), text, "black", font)
    return _encode(page)


def _tiles(samples: Sequence[Sample]) -> list[Image.Image]:
    encoded = _encoded_images(samples)
    return [_small(encoded[sample.tar, sample.key]) for sample in samples]


def _small(encoded: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            small = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # what Pillow's readers raise on damaged bytes
        return Image.new("RGB", (_TILE, _TILE), "grey")
    small.thumbnail((_TILE, _TILE))
    return small


def _encoded_images(samples: Sequence[Sample]) -> dict[tuple[Path, str], bytes]:
    found = {}
    for tar in dict.fromkeys(sample.tar for sample in samples):
        with ImageBytes(tar) as images:
            for sample in samples:
                if sample.tar == tar:
                    found[tar, sample.key] = images.read(sample.key)
    return found


def _draw(shards: Path, n: int, seed: int) -> list[Sample]:
    """Draw samples from a few shards, so that a large segment is not read whole."""
    chance = random.Random(seed)
    tars = tars_in(shards)
    chosen = sorted(chance.sample(tars, min(len(tars), SHARDS_READ)))
    stored: list[Sample] = []
    for tar in chosen:
        table = read_shard(tar, ["key", "caption", "status"])
        table = table.filter(pc.equal(table["status"], "success"))
        for key, caption in zip(
            table["key"].to_pylist(), table["caption"].to_pylist(), strict=True
        ):
            stored.append(Sample(tar, key, caption or ""))
    return sorted(chance.sample(stored, min(n, len(stored))))


def _encode(page: Image.Image) -> bytes:
    encoded = b""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        page.save(buffer, "JPEG", quality=quality)
        encoded = buffer.getvalue()
        if len(encoded) <= MAX_BYTES:
            break
    return encoded
