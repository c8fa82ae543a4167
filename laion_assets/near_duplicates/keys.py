"""Keys: images that are copies have one in common, others hardly ever.

A key is made of the signs of 28 of the 40 frequencies of one look, in one of several choices. Any
other image has a given key once in some hundred million. Among hundreds of millions of images and
with dozens of keys each that is often, so beside each key is a sketch of 32 bits of the same look:
those of copies differ in few bits. What is left is compared afterwards.

A sign of a frequency that is nearly zero differs easily in a copy. So who asks, asks also for the
keys that its looks would have with one of their weakest signs changed. What is held does not grow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
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
_WEAK: Final = 2
"""Signs of a key that who asks takes to be the other way, one at a time. With two, planted crops
are found nearly as often as if they were compared with the first images of all clusters."""
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
_CHOSEN, _OTHERS = (
    [
        [sign for sign in range(FREQUENCIES) if _choice(number) >> sign & 1 == chosen]
        for number in range(CHOICES)
    ]
    for chosen in (1, 0)
)
_SALTS: Final = np.arange(1, CHOICES + 1, dtype=np.uint64) << np.uint64(56)
_EXACT: Final = np.uint64(1 << 63)
_TURNED: Final = np.uint64(sum(1 << sign for sign in range(FREQUENCIES) if MIRRORED[sign] < 0))
_AS_IT_IS: Final = np.zeros((1, 1, CHOICES), np.uint64)
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
    """The keys of looks by their signs, in a choice each."""
    return _mixed((signs & _MASKS[choice]) | _SALTS[choice])


def by_cluster(images: Signatures, rows: NDArray[np.int64]) -> Entries:
    """The keys of the clusters that some images are in, (m,), by which their first images are found
    again; ``rows``: (m,)."""
    keys = spread(images["cluster"][rows])
    order = np.argsort(keys, kind="stable")
    return Entries(keys[order], np.zeros(len(rows), np.uint32), rows[order])


def keys_of(
    images: Signatures, *, turned: bool = False, changed: NDArray[np.uint64] = _AS_IT_IS
) -> Keys:
    """(n, 73): the keys of images; :data:`NONE` where an image has nothing to make one of.

    ``turned``: of the mirrored images. ``changed``: (n, 12, 6), the signs that are taken to be the
    other way, as bits. The last key is of the bytes alone.
    """
    signs = signs_of(images["looks"])
    if turned:
        signs = signs ^ _TURNED
    keys = key_of_signs(signs[:, :, None] ^ changed, np.arange(CHOICES))
    found = np.empty((len(images), LOOKS * CHOICES + 1), np.uint64)
    found[:, :-1] = keys.reshape(len(images), LOOKS * CHOICES)
    found[~images["looks"].any(axis=(1, 2)), :-1] = NONE
    heads = np.ascontiguousarray(images["sha256"][:, :8]).view("<u8").ravel()
    found[:, -1] = _mixed(heads.astype(np.uint64) | _EXACT)
    return found


def _weak_signs(images: Signatures) -> Iterator[NDArray[np.uint64]]:
    """Yield (n, 12, 6): of the signs of each look in each choice the one whose frequency is nearest
    to zero, as a bit; then the next one, and so on."""
    sizes = np.abs(images["looks"].astype(np.int16))
    of_choices = [sizes[:, :, chosen] for chosen in _CHOSEN]
    for _ in range(_WEAK):
        found = np.empty((len(images), LOOKS, CHOICES), np.uint64)
        for number, left in enumerate(of_choices):
            weakest = left.argmin(axis=2)
            found[:, :, number] = np.array(_CHOSEN[number], np.uint64)[weakest]
            np.put_along_axis(left, weakest[:, :, None], np.iinfo(np.int16).max, axis=2)
        yield np.uint64(1) << found


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


def entries_of(images: Signatures, rows: NDArray[np.int64], *, asking: bool = False) -> Entries:
    """The keys of several images, each key once for an image.

    ``rows``: (n,), their numbers. ``asking``: those of the mirrored images, too, and those of the
    images as they are with a weak sign changed.
    """
    weak = _weak_signs(images) if asking else ()
    found = _entries(images, rows, [_AS_IT_IS, *weak], turned=False)
    if asking:
        found += _entries(images, rows, [_AS_IT_IS], turned=True)
    entries = Entries.joined(found)
    again = (entries.key[1:] == entries.key[:-1]) & (entries.row[1:] == entries.row[:-1])
    if asking:
        # What asks may ask with each of the looks that have the key.
        again &= entries.sketch[1:] == entries.sketch[:-1]
    return entries.take(
        np.flatnonzero(~np.concatenate([np.zeros(1, np.bool_), again])[: len(entries.key)])
    )


def _entries(
    images: Signatures,
    rows: NDArray[np.int64],
    changes: Iterable[NDArray[np.uint64]],
    *,
    turned: bool,
) -> list[Entries]:
    """All keys of images, for each of some changes of their signs."""
    sketch, found = _sketches_of(images, turned=turned).ravel(), []
    for changed in changes:
        keys = keys_of(images, turned=turned, changed=changed)
        key = keys.ravel()
        there = np.flatnonzero(key != NONE)
        found.append(Entries(key[there], sketch[there], rows[there // keys.shape[1]]))
    return found
