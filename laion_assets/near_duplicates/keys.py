"""Keys: images that are copies have one in common, others hardly ever.

A key is made of the signs of 28 of the 40 frequencies of one look, in one of several choices. Any
other image has a given key once in some hundred million. Among hundreds of millions of images and
with dozens of keys each that is often, so beside each key is a sketch of 32 bits of the same look:
those of copies differ in few bits. What is left is compared afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

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
MOST_OTHER: Final = 8
"""Bits by which sketches of copies differ at most. Of planted copies that share a key, 99.7 % have
one with such sketches; of random sketches, 0.35 % are as near."""

Keys = NDArray[np.uint64]
Sketches = NDArray[np.uint32]


class Entries(NamedTuple):
    """Keys of some images, sorted, (n,) each: with its sketch and the row that it is of."""

    key: Keys
    sketch: Sketches
    row: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[Entries]) -> Entries:
        """All entries of the parts, sorted."""
        found = cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        return found.take(np.lexsort((found.row, found.key)))

    def take(self, which: slice | NDArray[np.int64]) -> Entries:
        return Entries(self.key[which], self.sketch[which], self.row[which])


def _choice(number: int) -> int:
    """A choice of the signs, as bits."""

    def rank(sign: int) -> bytes:
        return hashlib.blake2b(b"%d %d" % (number, sign)).digest()

    return sum(1 << sign for sign in sorted(range(FREQUENCIES), key=rank)[:_BITS])


_MASKS: Final = np.array([_choice(number) for number in range(CHOICES)], np.uint64)
_OTHERS: Final = [
    [sign for sign in range(FREQUENCIES) if not _choice(number) >> sign & 1]
    for number in range(CHOICES)
]
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


def key_of_signs(signs: NDArray[np.uint64], choice: NDArray[np.int64]) -> Keys:
    """(n,): the keys of looks by their signs, (n,), in a choice each."""
    return _mixed((signs & _MASKS[choice]) | _SALTS[choice])


def by_cluster(images: Signatures, rows: NDArray[np.int64]) -> Entries:
    """The keys of the clusters that some images are in, (m,), by which their first images are found
    again; ``rows``: (m,)."""
    keys = spread(images["cluster"][rows])
    order = np.argsort(keys, kind="stable")
    return Entries(keys[order], np.zeros(len(rows), np.uint32), rows[order])


def keys_of(images: Signatures, *, turned: bool = False) -> Keys:
    """(n, 73): the keys of images; :data:`NONE` where an image has nothing to make one of.

    ``turned``: of the mirrored images. The last key is of the bytes alone.
    """
    signs = signs_of(images["looks"])
    if turned:
        signs = signs ^ _TURNED
    chosen = (signs[:, :, None] & _MASKS) | _SALTS
    found = np.empty((len(images), LOOKS * CHOICES + 1), np.uint64)
    found[:, :-1] = _mixed(chosen.reshape(len(images), LOOKS * CHOICES))
    found[~images["looks"].any(axis=(1, 2)), :-1] = NONE
    heads = np.ascontiguousarray(images["sha256"][:, :8]).view("<u8").ravel()
    found[:, -1] = _mixed(heads.astype(np.uint64) | _EXACT)
    return found


def _sketches_of(images: Signatures, *, turned: bool) -> Sketches:
    """(n, 73): the signs that a key leaves out, and which of two like frequencies is larger."""
    signs = signs_of(images["looks"])
    if turned:
        signs = signs ^ _TURNED
    sizes = np.abs(images["looks"].astype(np.int16))
    larger = _packed(sizes[:, :, 0::2] > sizes[:, :, 1::2])
    found = np.empty((len(images), LOOKS, CHOICES), np.uint32)
    for number, others in enumerate(_OTHERS):
        places = np.array(others, np.uint64)
        left = _packed((signs[:, :, None] >> places) & np.uint64(1))
        found[:, :, number] = larger << np.uint32(len(others)) | left
    exact = np.ascontiguousarray(images["sha256"][:, 8:12]).view("<u4").astype(np.uint32)
    return np.concatenate([found.reshape(len(images), LOOKS * CHOICES), exact], axis=1)


def _packed(bits: NDArray[np.bool_] | Keys) -> Sketches:
    """The bits of the last axis, as a number."""
    worth = np.uint32(1) << np.arange(bits.shape[-1], dtype=np.uint32)
    found: Sketches = (bits.astype(np.uint32) * worth).sum(axis=-1, dtype=np.uint32)
    return found


def entries_of(images: Signatures, rows: NDArray[np.int64], *, mirrored: bool = False) -> Entries:
    """The keys of several images, each key once for an image.

    ``rows``: (n,), their numbers. ``mirrored``: those of the mirrored images, too.
    """
    found = []
    for turned in (False, True) if mirrored else (False,):
        keys = keys_of(images, turned=turned)
        key, sketch = keys.ravel(), _sketches_of(images, turned=turned).ravel()
        there = np.flatnonzero(key != NONE)
        found.append(Entries(key[there], sketch[there], rows[there // keys.shape[1]]))
    entries = Entries.joined(found)
    again = (entries.key[1:] == entries.key[:-1]) & (entries.row[1:] == entries.row[:-1])
    if mirrored:
        # What asks may ask with each of the looks that have the key.
        again &= entries.sketch[1:] == entries.sketch[:-1]
    return entries.take(
        np.flatnonzero(~np.concatenate([np.zeros(1, np.bool_), again])[: len(entries.key)])
    )
