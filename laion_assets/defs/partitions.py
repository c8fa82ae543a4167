"""One partition is one Common Crawl segment: crawl (dynamic) by segment number (static).

Two dimensions, not one list of keys: adding a crawl is then one key and not a hundred, and
automation over ten thousand partitions stays quick.
"""

from __future__ import annotations

from typing import Final

import dagster as dg

from laion_assets.segments import SegmentKey, segment_names

CRAWL: Final = "crawl"
SEGMENT: Final = "segment"
PARTITION_TAG: Final = "dagster/partition"
"""The tag in which Dagster keeps a run's partition key."""
UNFINISHED: Final = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
FINISHED: Final = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]

crawls = dg.DynamicPartitionsDefinition(name="crawls")


def segment_partitions(segments_per_crawl: int) -> dg.MultiPartitionsDefinition:
    return dg.MultiPartitionsDefinition(
        {
            CRAWL: crawls,
            SEGMENT: dg.StaticPartitionsDefinition(segment_names(segments_per_crawl)),
        }
    )


def partition_key(key: SegmentKey) -> dg.MultiPartitionKey:
    return dg.MultiPartitionKey({CRAWL: key.crawl, SEGMENT: key.segment})


def segment_key(key: str) -> SegmentKey:
    """The segment of a Dagster partition key. Raises ``ValueError`` for any other key."""
    if isinstance(key, dg.MultiPartitionKey):
        dimensions = key.keys_by_dimension
        return SegmentKey(dimensions[CRAWL], dimensions[SEGMENT])
    return SegmentKey.parse(key)
