"""One of each cluster: which rows a subset leaves out as copies of an image that it has.

Of the rows that the recipe takes otherwise, a segment takes the largest original of each cluster,
and of those the first, unless another segment's subset has claimed the cluster. So a cluster is in
the subset if any of its rows may be, and the order of work decides at most which one. What does
not belong here: what a cluster is (:mod:`laion_assets.near_duplicates`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets.dedup.claims import KeyClaims
from laion_assets.dedup.upkeep import Held
from laion_assets.layout import NEAR_DUPLICATES, PARTITIONS, SCORED_PAIRS
from laion_assets.near_duplicates.keys import Keys, spread
from laion_assets.near_duplicates.signatures import pixels_of
from laion_assets.tables import read_parquet, write_array

CLUSTERS: Final = "_clusters.npy"
"""File of a subset that takes one of each cluster: their numbers, (m,) int64, sorted."""

NO_CLUSTERS: Final[tuple[Keys, Keys]] = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))
"""What a subset claims that takes all of each cluster."""


class OtherRowsError(ValueError):
    """The near-duplicates are of other rows than the scores."""


def copies_among(
    scored: Path, near_duplicates: Path, taken: NDArray[np.int64], claims: KeyClaims, out: Path
) -> NDArray[np.bool_]:
    """Whether each row of a segment's scores is left out as a copy, (rows,) bool.

    ``taken``: the rows that the recipe takes otherwise, ascending. The clusters of the rows that
    are not left out are noted as pending claims, and their numbers written to ``out``. Raises
    :class:`OtherRowsError`.
    """
    cluster = clusters_of(near_duplicates, {SCORED_PAIRS: scored})[taken]
    pixels = pixels_of(_read(SCORED_PAIRS, scored, ["width", "height"]))
    left_out = np.zeros(len(pixels), np.bool_)
    best = largest_of_each(cluster, pixels[taken])
    clusters = cluster[best]
    free = ~_held(clusters, claims)
    left_out[taken] = True
    left_out[taken[best[free]]] = False
    write_array(out / CLUSTERS, clusters[free])
    claims.write(out, *_claims(clusters[free]))
    return left_out


def clusters_of(near_duplicates: Path, rows_of: Mapping[str, Path]) -> NDArray[np.int64]:
    """The cluster of each row of a segment, (rows,).

    ``rows_of``: by asset, folders that must have the same rows. Raises :class:`OtherRowsError`.
    """
    found = _read(NEAR_DUPLICATES, near_duplicates, ["SAMPLE_ID", "cluster"])
    for asset, folder in rows_of.items():
        if not _read(asset, folder, ["SAMPLE_ID"])["SAMPLE_ID"].equals(found["SAMPLE_ID"]):
            raise OtherRowsError(
                f"{near_duplicates} has other rows than {folder}: materialize"
                f" {SCORED_PAIRS} and {NEAR_DUPLICATES} again"
            )
    clusters: NDArray[np.int64] = found["cluster"].to_numpy()
    return clusters


def largest_of_each(clusters: NDArray[np.int64], pixels: NDArray[np.float64]) -> NDArray[np.int64]:
    """The row of the largest original of each cluster, of equal ones the first, (m,).

    They are in the order of the clusters' numbers. ``clusters``, ``pixels``: (n,).
    """
    best = np.lexsort((-pixels, clusters))
    return best[np.unique(clusters[best], return_index=True)[1]]


def _read(asset: str, folder: Path, columns: Sequence[str]) -> pa.Table:
    parts = PARTITIONS[asset].rows.paths(folder)
    return pa.concat_tables([read_parquet(part, columns) for part in parts])


def _held(clusters: NDArray[np.int64], claims: KeyClaims) -> NDArray[np.bool_]:
    """Whether another segment's subset has each cluster."""
    keys = spread(clusters)
    order = np.argsort(keys)
    index, found = claims.find(keys[order])
    same = found.low == clusters.view(np.uint64)[order[index]]
    held = np.zeros(len(clusters), np.bool_)
    held[order[index[same]]] = True
    return held


def _claims(clusters: NDArray[np.int64]) -> tuple[Keys, Keys]:
    keys = spread(clusters)
    order = np.argsort(keys)
    return keys[order], clusters.view(np.uint64)[order]


def clusters_held(folder: Path, _: Path) -> Held:
    """What a published subset holds in its ledger; nothing if its recipe took all rows."""
    path = folder / CLUSTERS
    clusters = np.load(path, allow_pickle=False) if path.exists() else np.zeros(0, np.int64)
    return Held(len(clusters), [_claims(clusters)])
