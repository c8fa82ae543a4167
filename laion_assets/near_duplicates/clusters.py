"""Clusters: each image joins the first one that it is a copy of, or is the first of a new cluster.

An image is compared with the first ones of clusters only, so that no chain of small steps ties
together what is not alike. Of several that it is like it joins the earliest: joined to the nearest,
copies of one picture would be divided among them. Within a segment the largest originals come
first, so that the first of a cluster is its best. What does not belong here: where clusters of
other segments are kept (:mod:`laion_assets.dedup.claims`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laion_assets.near_duplicates.keys import (
    MOST_OTHER,
    NONE,
    Entries,
    Keys,
    Sketches,
    by_cluster,
    entries_of,
    keys_of,
)
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.near_duplicates.signature import Signatures, likeness

_MOST: Final = 64
"""First ones of clusters that an image is compared with for one key, those before others."""
_AT_ONCE: Final = 25_000
"""Images whose keys are looked up in one pass through the ledger, at up to 24 KB each."""
_KEYS_AT_ONCE: Final = 500_000
_CLAIMS: Final = 1_000
"""Claims of one key that are looked at, the earliest ones."""
_HITS_AT_ONCE: Final = 2_000_000
_JUDGED_AT_ONCE: Final = 4_096
"""Pairs of images that are compared at once, at some 10 KB each."""
_BLOCK: Final = 1_024
_NOBODY: Final = np.iinfo(np.int64).max

Rows = NDArray[np.int64]
_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)


class Hits(NamedTuple):
    """Claims of keys that were looked up, (n,) each."""

    nth: Rows
    """Which of the keys it is a claim of."""
    owner: Rows
    row: Rows
    """The image's row in the owner's partition."""
    sketch: Sketches

    def take(self, which: slice | Rows | NDArray[np.bool_]) -> Hits:
        return Hits(self.nth[which], self.owner[which], self.row[which], self.sketch[which])


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
    """The earliest of other segments' clusters for each image; a likeness of -1 says that it has
    none.

    (n,) each.
    """

    cluster: Rows
    likeness: NDArray[np.float32]
    owner: Rows
    """Number of the segment whose cluster it is; whose claims are later has a larger one."""

    @classmethod
    def none(cls, n: int) -> Foreign:
        return cls(np.zeros(n, np.int64), np.full(n, -1, np.float32), np.full(n, _NOBODY))


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
    find: Callable[[Keys], Hits],
    read: Callable[[int, Rows], Signatures],
    options: NearDuplicateOptions,
) -> Foreign:
    """The clusters of other segments that images join if they join none that is earlier.

    ``images``: with the cluster that each was in, or 0. That goes before an earlier one, and who is
    still in it is not compared with others: a rebuild costs what is new. ``find``: the claims of
    sorted keys. ``read``: an owner's signatures by sorted rows. Of an owner's clusters the nearest
    is taken, and of equally near ones that with the smaller number.
    """
    best = Foreign.none(len(images))
    before, numbers = images["cluster"], cluster_of(images["sha256"])
    here = (before != 0) & np.isin(before, numbers)

    def compare(asked: Entries, *, stays: bool) -> None:
        for hits, of in _near(asked, find):
            triples = np.unique(np.stack([hits.owner, hits.row, of], axis=1), axis=0)
            for begin in range(0, len(triples), _JUDGED_AT_ONCE):
                some = triples[begin : begin + _JUDGED_AT_ONCE]
                _compare(images, some, read, options, best, stays=stays)

    # The same bytes may be the first of another segment's cluster, which then has their number.
    compare(by_cluster(images, np.flatnonzero(before * (~here | (before == numbers)))), stays=True)
    new = np.flatnonzero(~here & (best.likeness < 0))
    for at in range(0, len(new), _AT_ONCE):
        rows = new[at : at + _AT_ONCE]
        compare(entries_of(images[rows], rows, asking=True), stays=False)
    return best


def _near(asked: Entries, find: Callable[[Keys], Hits]) -> Iterator[tuple[Hits, Rows]]:
    """Yield claims whose keys are asked for and whose sketches are near, and who asks."""
    keys, begins, counts = np.unique(asked.key, return_index=True, return_counts=True)
    for at in range(0, len(keys), _KEYS_AT_ONCE):
        hits = find(keys[at : at + _KEYS_AT_ONCE])
        hits = hits.take(np.lexsort((hits.row, hits.owner, hits.nth)))
        place = np.arange(len(hits.nth)) - np.searchsorted(hits.nth, hits.nth)
        hits = hits.take(place < _CLAIMS)
        asking = counts[at + hits.nth]
        # As many at once as keeps to the bound, whoever asks for a key that many have.
        pieces = np.flatnonzero(np.diff(np.cumsum(asking) // _HITS_AT_ONCE)) + 1
        for piece in np.split(np.arange(len(hits.nth)), pieces):
            many = asking[piece]
            of = np.repeat(piece, many)
            place = np.arange(len(of)) - np.repeat(np.cumsum(many) - many, many)
            who = begins[at + hits.nth[of]] + place
            near = np.bitwise_count(asked.sketch[who] ^ hits.sketch[of]) <= MOST_OTHER
            yield hits.take(of[near]), asked.row[who[near]]


def _compare(
    images: Signatures,
    triples: Rows,
    read: Callable[[int, Rows], Signatures],
    options: NearDuplicateOptions,
    best: Foreign,
    *,
    stays: bool,
) -> None:
    """Note what is earlier than the best so far.

    ``triples``: (n, 3) owners, their rows, and images, sorted. ``stays``: only clusters in which
    the images were count.
    """
    for owner in np.unique(triples[:, 0]):
        mine = triples[triples[:, 0] == owner]
        wanted, place = np.unique(mine[:, 1], return_inverse=True)
        others = read(int(owner), wanted)[place.reshape(-1)]
        of = mine[:, 2]
        if stays:
            same = others["cluster"] == images["cluster"][of]
            others, of = others[same], of[same]
        alike, cluster = judged(images[of], others, options), others["cluster"]
        alike, cluster, of = (column[alike >= 0] for column in (alike, cluster, of))
        order = np.lexsort((cluster, -alike))
        chosen = order[np.unique(of[order], return_index=True)[1]]
        alike, cluster, of = alike[chosen], cluster[chosen], of[chosen]
        nearer = alike > best.likeness[of]
        nearer |= (alike == best.likeness[of]) & (cluster < best.cluster[of])
        earlier = (owner < best.owner[of]) | ((owner == best.owner[of]) & nearer)
        of = of[earlier]
        best.likeness[of], best.cluster[of] = alike[earlier], cluster[earlier]
        best.owner[of] = owner


def find_clusters(
    within: Within, foreign: Foreign, options: NearDuplicateOptions, number: int | None = None
) -> Clusters:
    """Put a segment's images into clusters. The same arguments give the same clusters.

    An image stays in the cluster that it was in, if that is there and alike enough; it is compared
    with others only if it is new, or they are. ``number``: the segment's own, as those of
    :class:`Foreign`, if it has claimed before.
    """
    images, same_as = within.images, within.same_as
    n = len(images)
    first, cluster = np.arange(n), np.zeros(n, np.int64)
    alike = np.ones(n, np.float32)
    numbers, before = cluster_of(images["sha256"]), images["cluster"]
    # One that was the first of its cluster is so still, whatever others have begun since. Another
    # segment's first image with the same bytes gives its cluster the same number.
    joins = (foreign.likeness >= 0) & ((before != numbers) | (foreign.cluster == numbers))
    earlier = joins & (foreign.owner < (_NOBODY if number is None else number))
    own, own_likeness = _own_firsts(within, numbers, options)
    begun, new, any_new = np.zeros(n, np.bool_), np.zeros(n, np.bool_), False
    for row in (int(row) for row in within.order if same_as[row] == row):
        was_first = own[row] == row and not joins[row]
        if not was_first and own[row] >= 0 and begun[own[row]]:
            first[row], alike[row] = own[row], own_likeness[row]
            within.add(row, int(own[row]))
            continue
        candidates, best, stays = _NO_ROWS, -1, False
        stays_foreign = joins[row] and foreign.cluster[row] == before[row]
        if not (stays_foreign or (was_first and not any_new)):
            candidates = within.candidates(row)
        if was_first:
            candidates = candidates[new[candidates]]
        if len(candidates):
            likely = judged(images[[row] * len(candidates)], images[candidates], options)
            alike_ones = np.flatnonzero(likely >= 0)
            same = alike_ones[numbers[candidates[alike_ones]] == before[row]]
            best, stays = int((*same, *alike_ones, -1)[0]), len(same) > 0
        if joins[row] and (best < 0 or stays_foreign or (earlier[row] and not stays)):
            first[row], alike[row], cluster[row] = -1, foreign.likeness[row], foreign.cluster[row]
            continue
        if best >= 0:
            first[row], alike[row] = candidates[best], likely[best]
        else:
            begun[row], new[row] = True, not was_first
            any_new = any_new or not was_first
        within.add(row, int(first[row]))
    founders = np.flatnonzero((first == np.arange(n)) & (same_as == np.arange(n)))
    cluster[founders] = numbers[founders]
    joined = first >= 0
    cluster[joined] = cluster[first[joined]]
    return Clusters(first[same_as], cluster[same_as], alike[same_as])


def _own_firsts(
    within: Within, numbers: Rows, options: NearDuplicateOptions
) -> tuple[Rows, NDArray[np.float32]]:
    """(n,) each: the row of the first image of the cluster that each was in, and the likeness to
    it; -1 if that is not here, or not alike."""
    images, n = within.images, len(within.images)
    rows = np.flatnonzero((within.same_as == np.arange(n)) & (images["cluster"] != 0))
    order = np.argsort(numbers, kind="stable")
    place = np.minimum(np.searchsorted(numbers[order], images["cluster"][rows]), n - 1)
    firsts = within.same_as[order[place]]
    here = numbers[firsts] == images["cluster"][rows]
    rows, firsts = rows[here], firsts[here]
    own, alike = np.full(n, -1), np.full(n, -1, np.float32)
    for at in range(0, len(rows), _JUDGED_AT_ONCE):
        some = slice(at, at + _JUDGED_AT_ONCE)
        alike[rows[some]] = judged(images[rows[some]], images[firsts[some]], options)
    own[rows] = np.where(alike[rows] >= 0, firsts, -1)
    return own, alike


class Within:
    """A segment's images in the order in which they may begin clusters, and how they find one
    another: by the keys that several have.

    Memory: some 3,000 bytes an image while it is made. ``images``: (n,), each with the cluster that
    it was in, or 0. ``pixels``: (n,), those of the originals.
    """

    def __init__(self, images: Signatures, pixels: Rows | NDArray[np.float64]) -> None:
        n = len(images)
        self.images = images
        self.order = np.lexsort((np.arange(n), -pixels))
        heads = np.ascontiguousarray(images["sha256"]).view("V16").ravel()
        _, begins, place = np.unique(heads[self.order], return_index=True, return_inverse=True)
        self.same_as = np.empty(n, np.int64)
        """The first image with the same bytes as each."""
        self.same_as[self.order] = self.order[begins[place.reshape(-1)]]
        rows = np.flatnonzero(self.same_as == np.arange(n))
        self._shared = self._of_several(rows)
        self._own, self._turned = (self._by_row(rows, turned=turned) for turned in (False, True))
        self._firsts: list[int] = []
        self._place: dict[int, int] = {}
        self._held: dict[int, dict[int, None]] = {}

    def _of_several(self, rows: Rows) -> Keys:
        """The keys that several images have, or one has twice, sorted."""
        blocks = [
            keys_of(self.images[rows[at : at + _BLOCK]], turned=turned).ravel()
            for at in range(0, len(rows), _BLOCK)
            for turned in (False, True)
        ]
        keys = np.concatenate([np.zeros(0, np.uint64), *blocks])
        keys.sort()
        again = keys[1:][keys[1:] == keys[:-1]]
        again = again[again != NONE]
        shared: Keys = np.unique(again)
        return shared

    def _by_row(self, rows: Rows, *, turned: bool) -> _ByRow:
        """Which of the shared keys each image has."""
        found, counts = [np.zeros(0, np.int32)], np.zeros(len(self.images) + 1, np.int64)
        for at in range(0, len(rows) if len(self._shared) else 0, _BLOCK):
            some = rows[at : at + _BLOCK]
            keys = keys_of(self.images[some], turned=turned)
            place = np.minimum(np.searchsorted(self._shared, keys), len(self._shared) - 1)
            there = self._shared[place] == keys
            found.append(place[there].astype(np.int32))
            counts[1 + some] = there.sum(axis=1)
        return _ByRow(np.concatenate(found), np.cumsum(counts))

    def candidates(self, row: int) -> Rows:
        """The first images of the clusters in which an image has a key of a row's, or of its
        mirrored image's, in the order in which they were added."""
        asked = {*self._own.of(row), *self._turned.of(row)}
        found = {place for key in asked for place in self._held.get(key, ())}
        return np.array([self._firsts[place] for place in sorted(found)], np.int64)

    def add(self, row: int, first: int) -> None:
        """Add a row to the cluster of ``first``, or, if that is the row itself, begin one."""
        if row == first:
            self._place[row] = len(self._firsts)
            self._firsts.append(row)
        for key in {*self._own.of(row)}:
            held = self._held.setdefault(key, {})
            if len(held) < _MOST:
                held[self._place[first]] = None


class _ByRow(NamedTuple):
    """Numbers of each row, one row's after another's, (m,); and where they end, (n + 1,)."""

    numbers: NDArray[np.int32]
    ends: Rows

    def of(self, row: int) -> list[int]:
        found: list[int] = self.numbers[self.ends[row] : self.ends[row + 1]].tolist()
        return found
