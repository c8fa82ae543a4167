"""Keys: images that are copies have one in common, others hardly ever.

A key is made of the signs of 28 of the 40 frequencies of one look, in one of several choices. So a
look-up of some keys finds an image's copies among hundreds of millions: any other one has a given
key once in some hundred million images. What is found is compared afterwards.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.near_duplicates.signature import (
    FREQUENCIES,
    LOOKS,
    MIRRORED,
    Signatures,
    signs_of,
)

CHOICES: Final = 6
_BITS: Final = 28

Keys = NDArray[np.uint64]


def _choice(number: int) -> int:
    """A choice of the signs, as bits."""

    def rank(sign: int) -> bytes:
        return hashlib.blake2b(b"%d %d" % (number, sign)).digest()

    return sum(1 << sign for sign in sorted(range(FREQUENCIES), key=rank)[:_BITS])


_MASKS: Final = np.array([_choice(number) for number in range(CHOICES)], np.uint64)
_SALTS: Final = np.arange(1, CHOICES + 1, dtype=np.uint64) << np.uint64(56)
_EXACT: Final = np.uint64(1 << 63)
_TURNED: Final = np.uint64(sum(1 << sign for sign in range(FREQUENCIES) if MIRRORED[sign] < 0))
NONE: Final = np.uint64(np.iinfo(np.uint64).max)
"""What stands for no key."""


def _mixed(values: NDArray[np.uint64]) -> Keys:
    """Spread values evenly over 64 bits, one to one (the finaliser of SplitMix64)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def spread(values: NDArray[np.int64]) -> Keys:
    """Keys of numbers such as a cluster's."""
    return _mixed(values.view(np.uint64))


def keys_of(images: Signatures, *, turned: bool = False) -> Keys:
    """(n, k): the keys of images; :data:`NONE` where one would repeat another of
    its image, or there is none.

    ``turned``: of the mirrored images. The last key is of the bytes alone.
    """
    signs = signs_of(images["looks"])
    if turned:
        signs = signs ^ _TURNED
    chosen = (signs[:, :, None] & _MASKS) | _SALTS
    found = _mixed(chosen.reshape(len(images), LOOKS * CHOICES))
    found[~images["looks"].any(axis=(1, 2))] = NONE
    heads = np.ascontiguousarray(images["sha256"][:, :8]).view("<u8").ravel()
    exact = _mixed(heads.astype(np.uint64) | _EXACT)[:, None]
    found = np.sort(np.concatenate([found, exact], axis=1), axis=1)
    found[:, 1:][found[:, 1:] == found[:, :-1]] = NONE
    return found


def pairs_of(keys: Keys, rows: NDArray[Any]) -> tuple[Keys, NDArray[np.int64]]:
    """The keys of several images, sorted, and the number of the row that each is of.

    ``keys``: (n, k); ``rows``: (n,).
    """
    flat = keys.ravel()
    of = np.repeat(np.asarray(rows, np.int64), keys.shape[1])
    there = flat != NONE
    flat, of = flat[there], of[there]
    order = np.argsort(flat, kind="stable")
    return flat[order], of[order]
