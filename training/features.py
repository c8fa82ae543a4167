"""Cached activations of the pretrained image tower over web-like pictures of the corpus.

Computing them takes most of the recipe's time, and the tower's first stages never change. So the
input of the last stage, which is fine-tuned, is cached as float16.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .compose import crawled, jitter
from .corpus import Glyph, rasterise
from .pretrained import IMAGE_FEATURES, TRUNK_SHAPE, tower_session

RASTER_SIZE = 384
INPUT_SIZE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def picture(glyph: Glyph, cache: Path, view: str) -> Image.Image:
    """Make a glyph's web-like picture as stored in a shard, 256 by 256.

    ``view`` seeds the random choices ("train-0", "eval"); training views are jittered, too.
    """
    drawing = cache / "drawings" / glyph.style / f"{glyph.concept}.png"
    if not drawing.exists():
        drawing.parent.mkdir(parents=True, exist_ok=True)
        partial = drawing.with_suffix(".partial")
        rasterise(glyph, cache, RASTER_SIZE).save(partial, "PNG", compress_level=1)
        partial.rename(drawing)
    rng = np.random.default_rng(zlib.crc32(f"{view}/{glyph.style}/{glyph.concept}".encode()))
    made = crawled(Image.open(drawing), rng)
    return jitter(made, rng) if view.startswith("train") else made


def trunk_features(
    glyphs: list[Glyph], cache: Path, view: str, threads: int = 1
) -> NDArray[np.float16]:
    """One view of every glyph after the tower's third stage, float16 (n, 160, 14, 14), cached."""
    file = cache / "features" / f"{view}-{_fingerprint(glyphs)}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npy")
        rows = np.lib.format.open_memmap(partial, "w+", np.float16, (len(glyphs), *TRUNK_SHAPE))
        session = tower_session(cache, "input", "trunk", threads)
        for place, pixels in enumerate(_inputs(glyphs, cache, view)):
            rows[place] = session.run(["trunk"], {"input": pixels[None]})[0][0]
        rows.flush()
        del rows
        partial.rename(file)
    loaded: NDArray[np.float16] = np.load(file, mmap_mode="r")
    return loaded


def pooled_features(glyphs: list[Glyph], cache: Path, view: str) -> NDArray[np.float32]:
    """The pretrained tower's output for one view of every glyph, float32 (n, 320), cached."""
    file = cache / "features" / f"{view}-pooled-{_fingerprint(glyphs)}.npy"
    if not file.exists():
        trunk = trunk_features(glyphs, cache, view)
        session = tower_session(cache, "trunk", "output")
        rows = np.empty((len(glyphs), IMAGE_FEATURES), np.float32)
        for at in range(0, len(glyphs), 8):
            batch = {"trunk": trunk[at : at + 8].astype(np.float32)}
            rows[at : at + 8] = session.run(["output"], batch)[0]
        partial = file.with_suffix(".partial.npy")
        np.save(partial, rows)
        partial.rename(file)
    loaded: NDArray[np.float32] = np.load(file)
    return loaded


def _inputs(glyphs: list[Glyph], cache: Path, view: str) -> Iterator[NDArray[np.float32]]:
    """Yield normalised pixels (3, 224, 224) of each glyph, prepared ahead by another process."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    with get_context("spawn").Pool(1) as pool:
        tasks = ((glyph, cache, view) for glyph in glyphs)
        for pixels in pool.imap(_resized, tasks, chunksize=16):
            scaled = pixels.astype(np.float32) / np.float32(255)
            yield ((scaled - mean) / std).transpose(2, 0, 1)


def _resized(task: tuple[Glyph, Path, str]) -> NDArray[np.uint8]:
    small = picture(*task).resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(small)


def _fingerprint(glyphs: list[Glyph]) -> str:
    text = "\n".join(f"{glyph.style}/{glyph.concept}" for glyph in glyphs)
    return f"{zlib.crc32(text.encode()):08x}"
