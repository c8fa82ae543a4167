"""A contact sheet: some of a segment's images with their captions, for a person's eye."""

from __future__ import annotations

import io
import random
import tarfile
import textwrap
from pathlib import Path
from typing import Final

import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

MAX_BYTES: Final = 150_000

_COLUMNS: Final = 6
_TILE: Final = 150
_GAP: Final = 8
_FONT_SIZE: Final = 12
_CAPTION_LINES: Final = 2
_CAPTION_CHARS: Final = 25
_SHARDS_READ: Final = 8
_QUALITIES: Final = (85, 70, 55, 40, 25, 10)


def contact_sheet(shards: Path, n: int = 24, seed: int = 0) -> bytes:
    """JPEG of at most 150 KB: ``n`` images drawn at random from a folder of shards."""
    samples = _draw(shards, n, seed)
    line = _FONT_SIZE + 3
    row_height = _TILE + _CAPTION_LINES * line + _GAP
    rows = max(1, -(-len(samples) // _COLUMNS))
    size = (_COLUMNS * (_TILE + _GAP) + _GAP, rows * row_height + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    if not samples:
        pen.text((_GAP, _GAP), "no images", "black", font)
    for i, (encoded, caption) in enumerate(samples):
        left = _GAP + i % _COLUMNS * (_TILE + _GAP)
        top = _GAP + i // _COLUMNS * row_height
        with Image.open(io.BytesIO(encoded)) as image:
            small = image.convert("RGB")
        small.thumbnail((_TILE, _TILE))
        corner = (left + (_TILE - small.width) // 2, top + (_TILE - small.height) // 2)
        sheet.paste(small, corner)
        lines = textwrap.wrap(caption, _CAPTION_CHARS, max_lines=_CAPTION_LINES, placeholder="…")
        for number, text in enumerate(lines):
            pen.text((left, top + _TILE + 2 + number * line), text, "black", font)
    return _encode(sheet)


def _draw(shards: Path, n: int, seed: int) -> list[tuple[bytes, str]]:
    """``(encoded, caption)``, from a few shards so that a large segment is not read whole."""
    chance = random.Random(seed)
    paths = sorted(shards.glob("[0-9]*.parquet"))
    chosen = sorted(chance.sample(paths, min(len(paths), _SHARDS_READ)))
    stored: list[tuple[Path, str, str]] = []
    for path in chosen:
        table = pq.ParquetFile(path).read(columns=["key", "caption", "status"])
        table = table.filter(pc.equal(table["status"], "success"))
        for key, caption in zip(
            table["key"].to_pylist(), table["caption"].to_pylist(), strict=True
        ):
            stored.append((path.with_suffix(".tar"), key, caption or ""))
    drawn = sorted(chance.sample(stored, min(n, len(stored))))
    samples = []
    for tar in dict.fromkeys(path for path, *_ in drawn):
        captions = {key: caption for path, key, caption in drawn if path == tar}
        with tarfile.open(tar) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                content = archive.extractfile(member)
                if key in captions and suffix in ("jpg", "png", "webp") and content is not None:
                    samples.append((content.read(), captions[key]))
    return samples


def _encode(sheet: Image.Image) -> bytes:
    encoded = b""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=quality)
        encoded = buffer.getvalue()
        if len(encoded) <= MAX_BYTES:
            break
    return encoded
