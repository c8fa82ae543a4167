"""Shards of seeded pictures and captions, as the download stage writes them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from benchmarks.download.pictures import make_pictures
from laion_assets.download import img2dataset_parts
from laion_assets.download.images import ImageMaker
from laion_assets.download.options import DownloadOptions

PICTURES: Final = 100
_WORDS: Final = Path(__file__).parent.parent / "language" / "labelled.tsv"
_LENGTHS: Final = (5, 25, 29, 33, 39, 45, 50, 56, 64, 73, 150)
"""Deciles of the lengths of LAION-400M's captions in characters (statistics of its release), and
outer bounds."""


def make_shards(folder: Path, n: int, samples_per_shard: int, seed: int = 0) -> None:
    """Write ``n`` samples into shards in ``folder``, which must exist.

    The pictures are those of :mod:`benchmarks.download.pictures`, resized, bordered and encoded
    once by img2dataset's resizer with our defaults (256 pixels, JPEG 95), and then used in turn:
    decoding costs the same for a repeated picture.
    """
    options = DownloadOptions(samples_per_shard=samples_per_shard)
    stored = _pictures(folder, options)
    chance = np.random.default_rng(seed)
    words = _words()
    for first in range(0, n, samples_per_shard):
        shard = first // samples_per_shard
        writer = img2dataset_parts.open_writer(folder, shard, _SCHEMA, options)
        for row in range(min(samples_per_shard, n - first)):
            key = img2dataset_parts.key_of(shard, row, samples_per_shard)
            caption = _caption(words, chance)
            image, width, height, original_width, original_height = stored[(first + row) % PICTURES]
            meta = {
                "url": f"https://pictures.test/{key}.jpg",
                "caption": caption,
                "key": key,
                "status": "success",
                "error_message": None,
                "width": width,
                "height": height,
                "original_width": original_width,
                "original_height": original_height,
            }
            writer.write(image, meta)
        writer.close()


_SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("url", "caption", "key", "status", "error_message")),
        *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
    ]
)

_Stored = tuple[bytes, int, int, int, int]


def _pictures(folder: Path, options: DownloadOptions) -> list[_Stored]:
    making = folder / ".pictures"
    making.mkdir()
    make_pictures(making, PICTURES)
    maker = ImageMaker(options)
    stored = []
    for path in sorted(making.iterdir()):
        made = maker.make(path.read_bytes())
        sizes = made.width, made.height, made.original_width, made.original_height
        stored.append((made.encoded, *sizes))
        path.unlink()
    making.rmdir()
    return stored


def _words() -> list[str]:
    with _WORDS.open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return sorted(
            {word for language, text in rows if language == "en" for word in text.split()}
        )


def _caption(words: list[str], chance: np.random.Generator) -> str:
    length = np.interp(chance.random(), np.linspace(0, 1, len(_LENGTHS)), _LENGTHS)
    caption = ""
    while len(caption) < length:
        caption += f" {chance.choice(words)}"
    return caption.strip()
