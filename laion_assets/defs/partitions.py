"""Partitions: one is one Common Crawl segment, a crawl (dynamic) by a segment number (static).

There are two dimensions instead of one list of keys: adding a crawl then adds one key instead of a
hundred, and automation over ten thousand partitions stays fast.
"""

from __future__ import annotations

from typing import Final

import dagster as dg

from laion_assets.layout import SegmentKey, segment_names

CRAWL: Final = "crawl"
SEGMENT: Final = "segment"
PARTITION_TAG: Final = "dagster/partition"
"""Name of the tag in which Dagster keeps a run's partition key."""
UNFINISHED: Final = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""Statuses of runs that wait or work."""
FINISHED: Final = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]
"""Statuses of runs that have ended."""

INTERRUPTED_TAG: Final = "laion_assets/interrupted"
"""Tag of a run that a person stopped together with Dagster: no failure of what it made."""

crawls = dg.DynamicPartitionsDefinition(name="crawls")
"""The crawls that the deployment knows; the sensor adds new ones."""


def segment_partitions(segments_per_crawl: int) -> dg.MultiPartitionsDefinition:
    """Return the partitions of every asset that is made by segment."""
    return dg.MultiPartitionsDefinition(
        {
            CRAWL: crawls,
            SEGMENT: dg.StaticPartitionsDefinition(segment_names(segments_per_crawl)),
        }
    )


def partition_key(key: SegmentKey) -> dg.MultiPartitionKey:
    """Return the Dagster partition key of a segment."""
    return dg.MultiPartitionKey({CRAWL: key.crawl, SEGMENT: key.segment})


def segment_key(key: str) -> SegmentKey:
    """Return the segment of a Dagster partition key. Raises ``ValueError`` for any other key."""
    if isinstance(key, dg.MultiPartitionKey):
        dimensions = key.keys_by_dimension
        return SegmentKey(dimensions[CRAWL], dimensions[SEGMENT])
    return SegmentKey.parse(key)
