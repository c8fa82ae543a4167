"""Near-duplicates for the report: how many there are, and some clusters with their pictures.

The numbers are those of the manifests. Only one partition is read: that with the most copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import duckdb

from laion_assets.errors import TransientError
from laion_assets.layout import NEAR_DUPLICATES, SCORED_PAIRS, SegmentKey
from laion_assets.stats.near import files_of_partition

CLUSTERS: Final = 6
IN_EACH: Final = 4


@dataclass(frozen=True)
class Copies:
    """Numbers over all segments that have near-duplicates."""

    images: int = 0
    clusters: int = 0
    """Clusters, so pictures that are no copies of one another."""

    @property
    def share(self) -> float:
        """Share of the images that are a copy of another one."""
        return 1 - self.clusters / self.images if self.images else 0.0


@dataclass(frozen=True)
class Member:
    """An image of a cluster, and the place of its picture."""

    cluster: int
    """Number of the cluster among those shown, from 1."""
    first: bool
    likeness: float
    url: str
    key: SegmentKey
    shard: int
    image: str
    """The picture's key in the shard."""


def copies(connection: duckdb.DuckDBPyConnection) -> Copies:
    """Sum the numbers of a catalog's partitions."""
    ((images, clusters),) = connection.execute(
        "select coalesce(sum((metadata->>'images')::bigint), 0), "
        "coalesce(sum((metadata->>'clusters')::bigint), 0) from partitions where asset = ?",
        [NEAR_DUPLICATES],
    ).fetchall()
    return Copies(int(images), int(clusters))


def clusters_shown(connection: duckdb.DuckDBPyConnection) -> list[Member]:
    """Some clusters of the segment with the most copies: those with the most different images.

    Images with a safety tag, or a text that names minors, are left out. Raises ``TransientError``
    if a partition was replaced since the catalog was built, and lacks a file that it had.
    """
    most = connection.execute(
        "select crawl, segment from partitions where asset = ? "
        "and (metadata->>'copies')::bigint > 0 "
        "order by (metadata->>'copies')::bigint desc, crawl, segment limit 1",
        [NEAR_DUPLICATES],
    ).fetchall()
    if not most:
        return []
    key = SegmentKey(*most[0])
    near, scored = (
        files_of_partition(connection, asset, key) for asset in (NEAR_DUPLICATES, SCORED_PAIRS)
    )
    if not (near and scored):
        return []
    try:
        rows: Sequence[tuple[int, bool, float, str, int, str]] = connection.execute(
            "with members as (select distinct on (cluster, sha256) cluster, likeness, url, shard, "
            'key, "first" from read_parquet($near) join read_parquet($scored) using ("SAMPLE_ID") '
            "where nsfw = 'UNLIKELY' and not text_names_minors "
            'order by cluster, sha256, "first" desc, url), '
            "counted as (select cluster, count(*) as n from members group by cluster), "
            "sizes as (select cluster, row_number() over (order by n desc, cluster) as number "
            "from counted where n > 1) "
            'select number, "first", likeness, url, shard, key from members join sizes '
            f"using (cluster) where number <= {CLUSTERS} qualify row_number() over (partition by "
            f'number order by "first" desc, likeness desc, url) <= {IN_EACH} '
            'order by number, "first" desc, likeness desc, url',
            {"near": near, "scored": scored},
        ).fetchall()
    except duckdb.IOException as error:
        raise TransientError(f"{NEAR_DUPLICATES} of {key} cannot be read: {error}") from error
    return [
        Member(number, first, likeness, url, key, shard, image)
        for number, first, likeness, url, shard, image in rows
    ]
