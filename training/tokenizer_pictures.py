"""Pictures that the shipped autoencoder learns from, and those that judge it, at 64 pixels.

Most are drawings like those of the drawn crawl, from other seeds. The others are the sample crawl's
pictures: emoji art on many backgrounds. One in ten combinations of colour, thing and background,
and one in ten art concepts, only judge.
"""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laion_assets.generation.pairs import shrunk
from laion_assets.sample_crawl.drawings import Drawing, every_drawing, render
from laion_assets.sample_crawl.plan import COPIED, Pictures
from laion_assets.tables import write_array

from .compose import encode, jitter, stored

DRAWINGS = 12_000
TEST_DRAWINGS = 512
ART_VIEWS = 2
SEED = 20211104
_FIRST = 1_000_000_000
"""Seed of the first drawing; those of the drawn crawl are far below."""

Pixels = NDArray[np.uint8]


def drawings(n: int, size: int, *, held_out: bool) -> tuple[Pixels, list[str]]:
    """Draw ``n`` pictures, uint8 (n, size, size, 3), and their captions."""
    rng = random.Random(SEED + held_out)
    kinds = [one for one in every_drawing() if _judges(repr(one)) == held_out]
    made, captions = np.empty((n, size, size, 3), np.uint8), []
    for number in range(n):
        kind = rng.choice(kinds)
        seed = _FIRST + number + held_out * DRAWINGS
        made[number] = drawn(kind, seed, size)
        captions.append(kind.caption(rng))
    return made, captions


def drawn(kind: Drawing, seed: int, size: int) -> Pixels:
    """A drawing as the pipeline stores it and the models see it: uint8 (size, size, 3)."""
    return _seen(Image.open(io.BytesIO(render(kind, seed))), size)


def art(size: int, *, held_out: bool) -> Pixels:
    """The sample crawl's pictures; for training each in several views, mirrored and jittered.

    Altered copies of them are left out, as are special files.
    """
    names = [name for name in Pictures().names() if not name.startswith(("special/", f"{COPIED}/"))]
    chosen = [name for name in names if _judges(PurePosixPath(name).stem) == held_out]
    return np.stack(list(_views(chosen, size, 1 if held_out else ART_VIEWS, held_out)))


def _views(names: list[str], size: int, views: int, held_out: bool) -> Iterator[Pixels]:
    pictures = Pictures()
    for name in names:
        picture = Image.open(io.BytesIO(pictures.read(name))).convert("RGB")
        for view in range(views):
            if held_out:
                yield _seen(picture, size)
                continue
            rng = np.random.default_rng([SEED, zlib.crc32(name.encode()), view])
            turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view % 2 else picture
            yield _seen(jitter(turned, rng), size)


def cached(cache: Path, size: int) -> tuple[Pixels, Pixels]:
    """The training drawings and art, rendered on first use."""
    folder = cache / "tokenizer"
    return (
        _kept(
            folder / f"drawings-{DRAWINGS}-{size}.npy",
            lambda: drawings(DRAWINGS, size, held_out=False)[0],
        ),
        _kept(folder / f"art-{ART_VIEWS}-{size}.npy", lambda: art(size, held_out=False)),
    )


def _kept(path: Path, make: Callable[[], Pixels]) -> Pixels:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_array(path, make())
    pixels: Pixels = np.load(path, mmap_mode="r")
    return pixels


def _seen(picture: Image.Image, size: int) -> Pixels:
    """What the models see of a picture that a shard stores at 256 by 256."""
    return shrunk(encode(stored(picture), "JPEG", 95), size)


def _judges(concept: str) -> bool:
    """Whether a combination or a concept is held out."""
    return zlib.crc32(concept.encode()) % 10 == 0
