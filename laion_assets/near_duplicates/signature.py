"""Signatures: what is kept of an image to recognise its copies.

An image is looked at without the padding that storing it added, and without any uniform margin;
either whole and as five crops, so that a copy which was cropped is like one of them. Of each look
the lowest frequencies of a DCT in grey are kept: their square roots, with signs, in 8 bits. Copies
that were scaled or encoded again differ little in them. What does not belong here: how copies are
found among many images (:mod:`.keys`), and which of them are one cluster (:mod:`.clusters`).
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LOOKS: Final = 12
"""The image without padding and its five crops, the image without margins and its five crops."""
FREQUENCIES: Final = 40
_SKETCH: Final = 64

SIGNATURE: Final = np.dtype(
    [
        ("image", "u1", (16,)),
        ("sha256", "u1", (16,)),
        ("cluster", "<i8"),
        ("model", "<u4"),
        ("looks", "i1", (LOOKS, FREQUENCIES)),
        ("sketch", "i1", (_SKETCH,)),
    ]
)
"""One image: digest of its stored bytes, beginning of its SHA-256, its cluster, the embedding's
model, the lowest frequencies of each look, and a sketch of the embedding."""

Signatures = NDArray[Any]

_READ: Final = 128
_GRID: Final = 32
_MOST: Final = 12
"""Frequencies in either direction that a coefficient may have."""
_UNIFORM: Final = 18
"""Range of the values in a line that counts as uniform, in any channel."""
_PLAIN: Final = 2.0
"""Standard deviation of the grey values below which an image has nothing to be recognised by."""
_CROP: Final = 0.05
"""Share of either side that a crop lacks."""
_PLACES: Final = sorted(
    ((u, v) for u in range(_MOST) for v in range(_MOST) if u or v),
    key=lambda place: (place[0] ** 2 + place[1] ** 2, place),
)[:FREQUENCIES]
_ROWS, _COLUMNS = (np.array(column) for column in zip(*_PLACES, strict=True))
MIRRORED: Final = np.where(_COLUMNS % 2, -1, 1).astype(np.int8)
"""(40,): by what the frequencies of a mirrored image differ."""


def look(encoded: bytes, width: int, height: int) -> NDArray[np.int8]:
    """The lowest frequencies of a stored image's looks, (12, 40) int8.

    ``width``, ``height``: of the original, by which padding is known; 0 if unknown. All is zero for
    an image that does not decode or has nothing to be recognised by.
    """
    import cv2

    none = np.zeros((LOOKS, FREQUENCIES), np.int8)
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if image is None:
        return none
    scale = _READ / max(image.shape[:2])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    whole = _without_padding(image, width, height)
    looks = np.array([_frequencies(part) for part in (*_crops(whole), *_crops(_core(whole)))])
    largest = np.abs(looks).max(axis=1, keepdims=True)
    if not largest.all():
        return none
    found: NDArray[np.int8] = np.rint(looks * (127 / largest)).astype(np.int8)
    return found


def _crops(image: NDArray[Any]) -> list[NDArray[Any]]:
    """An image, its middle, and what is left without its edges at each two sides."""
    high, wide = image.shape[:2]
    rows, columns = (max(2, round(side * _CROP)) for side in (high, wide))
    top, left = rows // 2, columns // 2
    return [
        image,
        image[top : high - rows + top, left : wide - columns + left],
        image[rows:, columns:],
        image[:-rows, columns:],
        image[rows:, :-columns],
        image[:-rows, :-columns],
    ]


def _without_padding(image: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """The part of a square image that its original filled, if the rest is uniform."""
    high, wide = image.shape[:2]
    if high != wide or width <= 0 or height <= 0 or width == height:
        return image
    scale = high / max(width, height)
    across = (high - height * scale) / 2, (wide - width * scale) / 2
    top, left = (math.ceil(margin) if margin else 0 for margin in across)
    inner = image[top : high - top, left : wide - left]
    outer = (image[: int(across[0])], image[:, : int(across[1])])
    padded = all(part.size == 0 or np.ptp(part, axis=(0, 1)).max() <= _UNIFORM for part in outer)
    return inner if padded and inner.size else image


def _core(image: NDArray[Any]) -> NDArray[Any]:
    """What is left without the uniform lines at each side; all of it, if that is hardly anything.

    A border may have a uniform margin within: once the border is off, that is one, too.
    """
    core = image
    while True:
        rows, columns = (np.ptp(core, axis=axis).max(axis=1) > _UNIFORM for axis in (1, 0))
        if not (rows.any() and columns.any()):
            return image
        top, bottom = rows.argmax(), len(rows) - rows[::-1].argmax()
        left, right = columns.argmax(), len(columns) - columns[::-1].argmax()
        if bottom - top < image.shape[0] / 5 or right - left < image.shape[1] / 5:
            return image
        if bottom - top == len(rows) and right - left == len(columns):
            return core
        core = core[top:bottom, left:right]


def _frequencies(image: NDArray[Any]) -> NDArray[np.float64]:
    """(40,): roots of the lowest frequencies of an image, with signs; zeros for a plain one."""
    import cv2

    if not image.size:
        return np.zeros(FREQUENCIES)
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (_GRID, _GRID), interpolation=cv2.INTER_AREA).astype(np.float64)
    if small.std() < _PLAIN:
        return np.zeros(FREQUENCIES)
    found = (_waves() @ small @ _waves().T)[_ROWS, _COLUMNS]
    roots: NDArray[np.float64] = np.sign(found) * np.sqrt(np.abs(found))
    return roots


@cache
def _waves() -> NDArray[np.float64]:
    """(12, 32): the first rows of an orthonormal DCT-II."""
    place, wave = np.arange(_GRID), np.arange(_MOST)[:, None]
    rows = np.cos(np.pi * (2 * place + 1) * wave / (2 * _GRID))
    return rows * np.where(wave, np.sqrt(2 / _GRID), np.sqrt(1 / _GRID))


def signs_of(looks: NDArray[np.int8]) -> NDArray[np.uint64]:
    """(n, 12) uint64: which frequencies of each look are positive, as bits."""
    bits = np.uint64(1) << np.arange(FREQUENCIES, dtype=np.uint64)
    found: NDArray[np.uint64] = np.where(looks > 0, bits, np.uint64(0)).sum(axis=2, dtype=np.uint64)
    return found


def sketches(vectors: NDArray[Any]) -> NDArray[np.int8]:
    """(n, 64) int8: random projections of embeddings, (n, dim), whose cosines are about theirs."""
    projected = vectors.astype(np.float32) @ _projection(vectors.shape[1])
    largest = np.abs(projected).max(axis=1, keepdims=True, initial=1e-9)
    found: NDArray[np.int8] = np.rint(projected * (127 / largest)).astype(np.int8)
    return found


@cache
def _projection(dim: int) -> NDArray[np.float32]:
    # The same for all time, which a library's random numbers are not.
    digests = [
        hashlib.blake2b(b"%d" % row, digest_size=_SKETCH // 8).digest() for row in range(dim)
    ]
    bits = np.unpackbits(np.frombuffer(b"".join(digests), np.uint8)).reshape(dim, _SKETCH)
    return np.where(bits, 1, -1).astype(np.float32)


def likeness(one: Signatures, other: Signatures) -> tuple[NDArray[np.float32], ...]:
    """(n,) each: the largest cosine of any two looks of two images, as they are or mirrored; and
    about the cosine of their embeddings, 1 if these are not of one model."""
    first, second = _unit(one["looks"]), _unit(other["looks"]).transpose(0, 2, 1)
    cosines = [(turned @ second).max(axis=(1, 2)) for turned in (first, first * MIRRORED)]
    embeddings = np.einsum("ni,ni->n", _unit(one["sketch"]), _unit(other["sketch"]))
    embeddings[one["model"] != other["model"]] = 1
    return np.max(cosines, axis=0), embeddings


def _unit(values: NDArray[Any]) -> NDArray[np.float32]:
    found = values.astype(np.float32)
    norms = np.linalg.norm(found, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = found / np.maximum(norms, 1e-9)
    return unit
