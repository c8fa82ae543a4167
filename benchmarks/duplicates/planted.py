"""Pictures and their altered copies, as the downloader stores them."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from laion_assets.clip.model import ClipModel
from laion_assets.download.images import ImageMaker, StoredImage
from laion_assets.download.options import DownloadOptions
from laion_assets.near_duplicates.clusters import Foreign, Within, find_clusters
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.near_duplicates.signature import SIGNATURE, Signatures, look, sketches
from laion_assets.sample_crawl.copies import COPIES, encoded, opened
from laion_assets.sample_crawl.plan import COPIED, Pictures

ORIGINAL: Final = "original"
REACHED: Final = ("resized", "recompressed", "bordered", "cropped")
"""Kinds for which there are goals."""


@dataclass
class Planted:
    """Images by row: which picture each shows, and what was done to it."""

    picture: NDArray[np.int64]
    kind: NDArray[Any]
    images: Signatures
    pixels: NDArray[np.int64]
    phash: NDArray[np.uint64]
    """The usual 64-bit hash of the stored images, to compare with."""


def vendors() -> list[tuple[str, str]]:
    """Pictures of the same thing by two vendors, which look alike and are no copies."""
    by_name: dict[str, list[str]] = {}
    for name in Pictures().names():
        folder, _, file = name.partition("/")
        if folder not in ("special", COPIED):
            by_name.setdefault(file.partition(".")[0], []).append(name)
    return sorted((names[0], names[1]) for names in by_name.values() if len(names) > 1)


def stored_copies(name: str, chance: random.Random) -> dict[str, StoredImage]:
    """A picture as it is and a copy of each kind, as the downloader stores them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of a palette with transparency
        image = opened(Pictures().read(name))
    made = {ORIGINAL: encoded(image)} | {kind: make(image, chance) for kind, make in COPIES.items()}
    return {kind: _maker().make(body) for kind, body in made.items()}


@cache
def _maker() -> ImageMaker:
    return ImageMaker(DownloadOptions(min_bytes=0))


def plant(names: Sequence[str], model: ClipModel | None, seed: int) -> Planted:
    """Make a copy of each kind of each picture, and the signatures of all.

    Without a model, no embeddings can be compared.
    """
    chance = random.Random(seed)
    stored, picture, kinds, sizes, hashes = [], [], [], [], []
    for number, name in enumerate(names):
        for kind, one in stored_copies(name, chance).items():
            stored.append(one.encoded)
            sizes.append((one.original_width, one.original_height))
            hashes.append(hashlib.sha256(one.encoded).digest()[:16])
            picture.append(number)
            kinds.append(kind)
    images = np.zeros(len(stored), SIGNATURE)
    for row, (body, size) in enumerate(zip(stored, sizes, strict=True)):
        images["looks"][row] = look(body, *size)
    images["sha256"] = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16)
    if model is None:
        images["model"] = np.arange(len(images))
    else:
        vectors = np.concatenate(
            [
                model.encode_images([opened(body) for body in stored[at : at + 64]])
                for at in range(0, len(stored), 64)
            ]
        )
        images["sketch"] = sketches(vectors)
    pixels = np.array([width * height for width, height in sizes], np.int64)
    phash = np.array([_phash(body) for body in stored], np.uint64)
    return Planted(np.array(picture), np.array(kinds), images, pixels, phash)


def _phash(body: bytes) -> int:
    """The signs of 8 × 8 frequencies against their median, as most libraries have it."""
    grey = opened(body).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    low = cv2.dct(np.asarray(grey, np.float32))[:8, :8].ravel()
    return sum(1 << int(place) for place in np.flatnonzero(low > np.median(low)))


def clusters(planted: Planted, options: NearDuplicateOptions) -> NDArray[np.int64]:
    """(n,): the cluster of each image, as those of one segment."""
    none = Foreign.none(len(planted.images))
    return find_clusters(Within(planted.images, planted.pixels), none, options).cluster


def measured(planted: Planted, found: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """Recall and precision of each kind, of the cluster ``found`` for each image, (n,).

    Recall: the share of copies that are in their original's cluster. Precision: of the copies in a
    cluster with other images, the share that are in one with none of another picture.
    """
    original = found[planted.kind == ORIGINAL]
    pictures = {of: set(planted.picture[found == of].tolist()) for of in np.unique(found).tolist()}
    sizes = {of: int(np.count_nonzero(found == of)) for of in pictures}
    result = {}
    for kind in dict.fromkeys(planted.kind.tolist()):
        rows = np.flatnonzero(planted.kind == kind)
        with_others = [row for row in rows.tolist() if sizes[int(found[row])] > 1]
        pure = sum(len(pictures[int(found[row])]) == 1 for row in with_others)
        recall = float(np.mean(found[rows] == original[planted.picture[rows]]))
        result[kind] = recall, pure / max(1, len(with_others))
    return result
