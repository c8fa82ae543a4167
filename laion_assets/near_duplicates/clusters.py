"""Clusters: each image joins the first one that it is a copy of, or is the first of a new cluster.

An image is compared with the first ones of clusters only, so that no chain of small steps ties
together what is not alike. The largest originals come first, so that the first of a cluster is its
best. What does not belong here: where clusters of other segments are kept (:mod:`.claims`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from laion_assets.near_duplicates.keys import Keys, keys_of, pairs_of
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.near_duplicates.signature import Signatures, likeness

_MOST: Final = 64
"""First ones of clusters that an image is compared with for one key, those before others."""
_AT_ONCE: Final = 200_000
"""Images whose keys are looked up in one pass through the ledger; they take some hundred MB."""

Rows = NDArray[np.int64]


@dataclass
class Clusters:
    """The clusters of a segment's images, by row: the first one's number, or a foreign cluster."""

    first: Rows
    """(n,): the row of the cluster's first image; -1 if that is another segment's."""
    cluster: Rows
    """(n,): the cluster's number."""
    likeness: NDArray[np.float32]
    """(n,): likeness to the first image; 1 for that itself, and for the same bytes."""

    @property
    def founders(self) -> Rows:
        """The rows that are the first of their clusters, ascending."""
        return np.flatnonzero(self.first == np.arange(len(self.first)))


@dataclass
class Foreign:
    """The best of other segments' clusters for each image; a likeness of -1 says that it has none.

    (n,) each.
    """

    cluster: Rows
    likeness: NDArray[np.float32]

    @classmethod
    def none(cls, n: int) -> Foreign:
        return cls(np.zeros(n, np.int64), np.full(n, -1, np.float32))


def cluster_of(sha256: NDArray[np.uint8]) -> Rows:
    """(n,): numbers of clusters, by the beginning of the SHA-256 of their first images, (n, 16).

    A number does not tell the hash that it was made of.
    """
    digests = [
        hashlib.blake2b(row.tobytes(), digest_size=8, person=b"cluster").digest() for row in sha256
    ]
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)


def judged(
    one: Signatures, other: Signatures, options: NearDuplicateOptions
) -> NDArray[np.float32]:
    """(n,): the likeness of each two images, or -1 where they are no copies of one picture."""
    hashes, embeddings = likeness(one, other)
    copies = (hashes >= options.likeness) & (embeddings >= options.embedding)
    same = (one["sha256"] == other["sha256"]).all(axis=1)
    found: NDArray[np.float32] = np.where(copies, hashes, -1).astype(np.float32)
    found[same] = 1
    return np.minimum(found, 1)


def find_foreign(
    images: Signatures,
    find: Callable[[Keys], tuple[Rows, NDArray[np.uint32], Rows]],
    read: Callable[[int, Rows], Signatures],
    options: NearDuplicateOptions,
) -> Foreign:
    """The clusters of other segments that images join if they join none that is nearer.

    ``find``: for sorted keys, the index of the key, the owner and the owner's row of each claim.
    ``read``: an owner's signatures by rows. Of equally alike ones that of the earliest owner wins.
    """
    best = Foreign.none(len(images))
    for at in range(0, len(images), _AT_ONCE):
        rows = np.arange(at, min(at + _AT_ONCE, len(images)))
        some = images[rows]
        both = np.concatenate([keys_of(some), keys_of(some, turned=True)])
        keys, of = pairs_of(both, np.concatenate([rows, rows]))
        index, owner, row = find(keys)
        found = np.unique(np.stack([owner.astype(np.int64), row, of[index]], axis=1), axis=0)
        for number in np.unique(found[:, 0]):
            mine = found[found[:, 0] == number]
            wanted, place = np.unique(mine[:, 1], return_inverse=True)
            others = read(int(number), wanted)[place.reshape(-1)]
            alike = judged(images[mine[:, 2]], others, options)
            order = np.lexsort((mine[:, 1], -alike))
            _, first = np.unique(mine[order, 2], return_index=True)
            chosen = order[first]
            of_image = mine[chosen, 2]
            better = alike[chosen] > best.likeness[of_image]
            best.likeness[of_image[better]] = alike[chosen[better]]
            best.cluster[of_image[better]] = others["cluster"][chosen[better]]
    return best


def find_clusters(
    images: Signatures, pixels: Rows, foreign: Foreign, options: NearDuplicateOptions
) -> Clusters:
    """Put a segment's images into clusters.

    ``pixels``: (n,), those of the originals. The same arguments give the same clusters.
    """
    n = len(images)
    first, cluster = np.arange(n), np.zeros(n, np.int64)
    alike = np.ones(n, np.float32)
    order = np.lexsort((np.arange(n), -pixels))
    heads = np.ascontiguousarray(images["sha256"]).view("S16").ravel() if n else np.zeros(0, "S16")
    _, begins, place = np.unique(heads[order], return_index=True, return_inverse=True)
    # Of each image the first one with the same bytes.
    same_as = np.empty(n, np.int64)
    same_as[order] = order[begins[place.reshape(-1)]]
    ways = _Ways(images, np.flatnonzero(same_as == np.arange(n)))
    for row in (int(row) for row in order if same_as[row] == row):
        near, of_near = foreign.likeness[row], -1
        candidates = ways.candidates(row)
        if len(candidates):
            likely = judged(images[[row] * len(candidates)], images[candidates], options)
            best = int(np.argmax(likely))
            if likely[best] >= max(near, options.likeness):
                near, of_near = likely[best], int(candidates[best])
        if near < 0:
            ways.add(row)
            continue
        first[row], alike[row] = of_near, near
        if of_near < 0:
            cluster[row] = foreign.cluster[row]
    founders = np.flatnonzero((first == np.arange(n)) & (same_as == np.arange(n)))
    cluster[founders] = cluster_of(images["sha256"][founders])
    joined = first >= 0
    cluster[joined] = cluster[first[joined]]
    return Clusters(first[same_as], cluster[same_as], alike[same_as])


class _Ways:
    """The keys by which a segment's images find one another: those that several have."""

    def __init__(self, images: Signatures, rows: Rows) -> None:
        keys, of = pairs_of(keys_of(images[rows]), rows)
        asked, asking = pairs_of(
            np.concatenate([keys_of(images[rows]), keys_of(images[rows], turned=True)]),
            np.concatenate([rows, rows]),
        )
        # A key that an image has mirrored, too, counts twice, which costs a look and no more.
        values, counts = np.unique(asked, return_counts=True)
        shared = values[counts > 1]
        self._asked = _by_row(*_among(shared, asked, asking))
        self._keys = _by_row(*_among(shared, keys, of))
        self._held: dict[int, list[int]] = {}

    def candidates(self, row: int) -> Rows:
        """The rows added so far that have a key of a row's, or of its mirrored image's, sorted."""
        found = {other for key in self._asked.get(row, ()) for other in self._held.get(key, ())}
        return np.array(sorted(found), np.int64)

    def add(self, row: int) -> None:
        for key in self._keys.get(row, ()):
            held = self._held.setdefault(key, [])
            if len(held) < _MOST:
                held.append(row)


def _among(shared: Keys, keys: Keys, of: Rows) -> tuple[Keys, Rows]:
    place = np.minimum(np.searchsorted(shared, keys), max(len(shared) - 1, 0))
    wanted = shared[place] == keys if len(shared) else np.zeros(len(keys), np.bool_)
    return keys[wanted], of[wanted]


def _by_row(keys: Keys, of: Rows) -> dict[int, list[int]]:
    order = np.argsort(of, kind="stable")
    rows, begins = np.unique(of[order], return_index=True)
    pieces = np.split(keys[order], begins[1:]) if len(rows) else []
    return {int(row): piece.tolist() for row, piece in zip(rows, pieces, strict=True)}
