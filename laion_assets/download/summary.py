"""Summary of a segment's download, for its counts and for the people who look at the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from laion_assets.download.numbering import KeysGiven
from laion_assets.download.shard_files import name_of
from laion_assets.download.shard_stats import FailingHosts, ShardStats, most_failing
from laion_assets.funnel import StageCounts, total


@dataclass(frozen=True)
class Downloaded:
    """A segment's counts, and other figures of its download."""

    counts: StageCounts
    given: KeysGiven
    """The keys that this version and those before it have given."""
    asked_for: int = 0
    """Rows whose URL was asked for, by this run or the runs that it resumed."""
    reused: int = 0
    """Rows whose outcome was taken over from an earlier version."""
    changed: int = 0
    """Rows whose bytes were not those recorded before, taken or not."""
    bytes: int = 0
    """Bytes of the received bodies."""
    seconds: float = 0.0
    """Duration of this run."""
    fetched_now: int = 0
    """Rows whose URL was asked for by this run."""
    bytes_now: int = 0
    """Bytes of the bodies that this run received."""
    hosts: FailingHosts = field(default_factory=dict)
    """The hosts that failed most often, with their reasons."""
    without_network: list[str] = field(default_factory=list)
    """Shards in which every download failed for a network reason, after all retries."""


def sum_up(
    shards: Mapping[int, ShardStats], made: Collection[ShardStats], seconds: float, given: KeysGiven
) -> Downloaded:
    """The summary of all ``shards``, by number in order, of which this run has ``made`` some."""
    of_all = shards.values()
    return Downloaded(
        total("images", [stats.counts for stats in of_all]),
        given,
        asked_for=sum(stats.asked_for for stats in of_all),
        reused=sum(stats.reused for stats in of_all),
        changed=sum(stats.changed for stats in of_all),
        bytes=sum(stats.bytes for stats in of_all),
        seconds=seconds,
        fetched_now=sum(stats.asked_for for stats in made),
        bytes_now=sum(stats.bytes for stats in made),
        hosts=most_failing(stats.failing_hosts for stats in of_all),
        without_network=[
            name_of(shard) for shard, stats in shards.items() if stats.input_digest is None
        ],
    )
