"""Finds the partitions of a lake that may hold a row, and says which tables must be searched by a
scan instead.

A table's rows are some of those of the table that it was made of. So what is looked up among the
pairs and the images is found in all that was made of them, as long as each table was made of what
is published before it. A table for which that does not hold is searched row by row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from functools import cached_property
from typing import Final

import numpy as np

from laion_assets.files import ReadAt
from laion_assets.lake import Lake
from laion_assets.layout import (
    EMBEDDINGS,
    FILTERED_SUBSET,
    IMAGE_SHARDS,
    KNN_INDEX,
    LOOKUP,
    NEAR_DUPLICATES,
    PAIR_PARQUET,
    SCORED_PAIRS,
    SUBSET_PREFIX,
    UNIQUE_PAIRS,
    SegmentKey,
)
from laion_assets.lookup.files import Hashes, Rows, find
from laion_assets.lookup.write import BLOCK, FILES

MADE_OF: Final = "made_of"
"""Metadata of a manifest: the data version of each asset that the partition was made of."""

_BEFORE: Final = {
    UNIQUE_PAIRS: PAIR_PARQUET,
    IMAGE_SHARDS: UNIQUE_PAIRS,
    EMBEDDINGS: IMAGE_SHARDS,
    SCORED_PAIRS: EMBEDDINGS,
    NEAR_DUPLICATES: EMBEDDINGS,
    FILTERED_SUBSET: SCORED_PAIRS,
    KNN_INDEX: FILTERED_SUBSET,
}
"""Asset -> the asset whose rows it takes its own from."""


class Partitions:
    """What a lake has, as it is now, for the segments ``keys``, or for all."""

    def __init__(self, lake: Lake, keys: Collection[SegmentKey] | None = None) -> None:
        self._lake = lake
        assets = [PAIR_PARQUET, *_BEFORE, *lake.assets(f"{SUBSET_PREFIX}*")]
        self._published = {
            asset: {
                key: at
                for key, at in lake.published_at(asset).items()
                if key is not None and (keys is None or key in keys)
            }
            for asset in assets
        }

    def keys(self, asset: str) -> Collection[SegmentKey]:
        """The segments of which the asset has a partition."""
        return self._published[asset].keys()

    def published_at(self, asset: str, key: SegmentKey) -> float:
        """When a partition was published; infinite for one that is not."""
        return self._published[asset].get(key, np.inf)

    def assets(self, key: SegmentKey) -> list[str]:
        """The assets with rows that have a partition of the segment, in the order of processing."""
        return [asset for asset, published in self._published.items() if key in published]

    @cached_property
    def scanned(self) -> dict[SegmentKey, set[str]]:
        """Segment -> the assets whose rows may be others than those before them."""
        found: dict[SegmentKey, set[str]] = {}
        for asset, published in self._published.items():
            if asset == PAIR_PARQUET:
                continue
            before = _BEFORE.get(asset, SCORED_PAIRS)
            earlier = self._published[before]
            for key, at in published.items():
                if at < earlier.get(key, np.inf) and not self._made_of_it(asset, before, key):
                    found.setdefault(key, set()).add(asset)
        return found

    def _made_of_it(self, asset: str, before: str, key: SegmentKey) -> bool:
        """Whether a partition was made of what is published before it, by their manifests.

        What is made again with the same result is younger than what was made of it.
        """
        if key not in self._published[before]:
            return False
        made_of = self._lake.manifest(asset, key).metadata.get(MADE_OF, {})
        same: bool = made_of.get(before) == self._lake.manifest(before, key).data_version
        return same

    def candidates(
        self, asset: str, sought: Mapping[str, Hashes]
    ) -> tuple[dict[SegmentKey, Rows], list[SegmentKey]]:
        """Look up keys in all partitions of `pair_parquet` or `image_shards`.

        ``sought``: kind of a key -> (n,) uint64, sorted: the first 8 bytes of each key. Returns the
        rows of each segment's table that may be meant, sorted; and the segments whose partitions
        have no look-up. Raises :class:`.files.LookupDamagedError`.
        """
        wanted = [
            (name, kind == "host", sought[kind])
            for kind, name in FILES[asset].items()
            if len(sought.get(kind, ()))
        ]
        opened = self._lake.opener()

        def look(key: SegmentKey) -> Rows | None:
            try:
                hits = [
                    _rows(opened(asset, key, f"{LOOKUP}/{name}"), host, keys)
                    for name, host, keys in wanted
                ]
            except FileNotFoundError:
                return None
            return hits[0] if len(hits) == 1 else np.unique(np.concatenate(hits))

        keys = list(self._published[asset]) if wanted else []
        found: dict[SegmentKey, Rows] = {}
        without = []
        for key, rows in zip(keys, self._lake.map(look, keys), strict=True):
            if rows is None:
                without.append(key)
            elif len(rows):
                found[key] = rows
        return found, without


def _rows(file: ReadAt, of_hosts: bool, keys: Hashes) -> Rows:
    with closing(file):
        rows = find(file, keys)
    if of_hosts and len(rows):
        _, first = np.unique(rows // BLOCK, return_index=True)
        spans = [np.arange(row, row - row % BLOCK + BLOCK) for row in rows[first].tolist()]
        rows = np.concatenate(spans).astype(np.uint32)
    return rows
