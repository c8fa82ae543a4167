"""A segment's near-duplicates: clusters within and across segments, and their table.

The clusters that a segment is the first to have are claimed in a ledger, as
:mod:`laion_assets.dedup` keeps them: by the keys of their first images, each with a sketch and
the image's row in the partition.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laion_assets import schemas
from laion_assets.dedup.claims import KeyClaims
from laion_assets.dedup.upkeep import Held
from laion_assets.files import ReadAt
from laion_assets.layout import NEAR_DUPLICATES, PARTITIONS, SegmentKey
from laion_assets.near_duplicates.clusters import (
    Clusters,
    Foreign,
    Hits,
    Within,
    find_clusters,
    find_foreign,
)
from laion_assets.near_duplicates.keys import Entries, Keys, by_cluster, entries_of
from laion_assets.near_duplicates.options import NearDuplicateOptions
from laion_assets.near_duplicates.signature import Signatures, signs_of
from laion_assets.near_duplicates.signatures import (
    all_signatures,
    pixels_of,
    read_signatures,
    write_signatures,
)
from laion_assets.tables import PartsWriter, read_parquet, write_array

logger = logging.getLogger(__name__)

BY_SAMPLE: Final = "_by_sample.npy"
"""File beside the parts, for look-ups: (n,) :data:`SAMPLE_CLUSTER`, sorted by SAMPLE_ID."""
SAMPLE_CLUSTER: Final = np.dtype([("sample", "<i8"), ("cluster", "<i8")])

_SKETCH: Final = np.uint64(32)
"""Place of a sketch in what goes with a key; below it is the image's row in its partition."""
_ROW: Final = np.uint64((1 << 32) - 1)
_CLAIMS_OF_A_KEY: Final = 64


@dataclass(frozen=True)
class Found:
    """How many images a segment has, and in how many clusters."""

    images: int
    clusters: int
    """Clusters of which the first image is the segment's."""
    copies: int
    """Images that are like another one of the segment, or have the same bytes."""
    foreign: int
    """Images that are in a cluster of another segment."""

    def metadata(self) -> dict[str, int]:
        """What a manifest records."""
        return asdict(self)

    def table(self) -> list[dict[str, str | int]]:
        """The same for people."""
        return [
            {"images": "first of their cluster", "number": self.clusters},
            {"images": "copies of another image of the segment", "number": self.copies},
            {"images": "copies of an image of another segment", "number": self.foreign},
        ]


def write_segment(
    rows: pa.Table,
    images: Signatures,
    claims: KeyClaims,
    opener: Callable[[SegmentKey], ReadAt],
    out: Path,
    options: NearDuplicateOptions,
) -> Found:
    """Write the table of a segment's near-duplicates, and note its claims as pending.

    ``rows``, ``images``: of :mod:`.signatures`. ``opener``: opens another segment's published
    signatures. Two calls in a row give the same bytes. The ledger is locked from the first look-up
    until the block of :func:`~laion_assets.dedup.claims.claiming_keys` ends.
    """
    within = Within(images, pixels_of(rows))
    # The ledger is locked from here on.
    foreign = _foreign(images, claims, opener, options)
    clusters = find_clusters(within, foreign, options, claims.number)
    images = images.copy()
    images["cluster"] = clusters.cluster
    write_signatures(out, images)
    _write_rows(rows, images, clusters, out)
    founders = clusters.founders
    claims.write(out, *_claims(images, founders))
    others = int(np.count_nonzero(clusters.first < 0))
    return Found(len(rows), len(founders), len(rows) - len(founders) - others, others)


def _foreign(
    images: Signatures,
    claims: KeyClaims,
    opener: Callable[[SegmentKey], ReadAt],
    options: NearDuplicateOptions,
) -> Foreign:
    def find(keys: Keys) -> Hits:
        index, found = claims.find(keys)
        row, sketch = found.low & _ROW, (found.low >> _SKETCH).astype(np.uint32)
        return Hits(index, found.owner.astype(np.int64), row.astype(np.int64), sketch)

    def read(owner: int, wanted: NDArray[np.int64]) -> Signatures:
        with closing(opener(claims.segment_of(owner))) as file:
            return read_signatures(file, wanted)

    return find_foreign(images, find, read, options)


def _write_rows(rows: pa.Table, images: Signatures, clusters: Clusters, out: Path) -> None:
    first = np.zeros(len(rows), np.bool_)
    first[clusters.founders] = True
    columns = {
        "SAMPLE_ID": rows["SAMPLE_ID"],
        "image_hash": signs_of(images["looks"][:, :1])[:, 0].view(np.int64),
        "cluster": clusters.cluster,
        "likeness": clusters.likeness,
        "first": first,
    }
    with PartsWriter(out, schemas.NEAR_DUPLICATES) as writer:
        writer.write(pa.table(columns, schema=schemas.NEAR_DUPLICATES))
    found = np.zeros(len(rows), SAMPLE_CLUSTER)
    found["sample"], found["cluster"] = rows["SAMPLE_ID"].to_numpy(), clusters.cluster
    write_array(out / BY_SAMPLE, np.sort(found, order=["sample", "cluster"]))


def _claims(images: Signatures, founders: NDArray[np.int64]) -> tuple[Keys, Keys]:
    entries = Entries.joined([entries_of(images[founders], founders), by_cluster(images, founders)])
    # Some keys are those of many pictures, and each of these has others.
    place = np.arange(len(entries.key)) - np.searchsorted(entries.key, entries.key)
    entries = entries.take(np.flatnonzero(place < _CLAIMS_OF_A_KEY))
    low = entries.sketch.astype(np.uint64) << _SKETCH | entries.row.astype(np.uint64)
    return entries.key, low


def claims_held(folder: Path, _: Path) -> Held:
    """What a published partition holds in the ledger."""
    parts = PARTITIONS[NEAR_DUPLICATES].rows.paths(folder)
    first = np.concatenate([read_parquet(part, ["first"])["first"].to_numpy() for part in parts])
    keys, rows = _claims(all_signatures(folder), np.flatnonzero(first))
    return Held(len(keys), [(keys, rows)])
