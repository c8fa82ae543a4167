"""Compare what the lake keeps with what its manifests say.

A partition is verified as it is kept: in the folder, or in the store, whatever copies there are.
What does not belong here: files that partitions share and that change, such as the dedup ledger and
the removal lists. No manifest has their digests.
"""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

from laion_assets.lake.base import Lake
from laion_assets.lake.content import MANIFEST
from laion_assets.lake.object_store import DamagedError
from laion_assets.lake.partition import NotPublishedError
from laion_assets.lake.whole import problem, unreadable
from laion_assets.layout import SegmentKey, place_of
from laion_assets.work import Progress

logger = logging.getLogger(__name__)

_UNREADABLE: Final = (OSError, ValueError, LookupError, TypeError, DamagedError)
"""What reading a damaged manifest or file may raise. A store that does not answer raises others."""


class Partition(NamedTuple):
    asset: str
    key: SegmentKey | None

    def __str__(self) -> str:
        return f"{self.asset} of {self.key}" if self.key else self.asset


@dataclass(frozen=True)
class Damage:
    """A file that is not as it was published."""

    partition: Partition
    name: str
    """Relative to the partition's folder."""
    problem: str
    version: str = ""
    """The partition's, as :meth:`Lake.versions` names it."""

    def __str__(self) -> str:
        return f"{self.partition}: {self.name} {self.problem}"


@dataclass(frozen=True)
class Choice:
    """The partitions to verify: those that all of these name."""

    assets: Collection[str] = ()
    """Names of assets; all if empty."""
    crawl: str | None = None
    share: tuple[int, int] | None = (0, 1)
    """Which of how many shares of about equal size; a partition is always in the same one. None
    leaves ``also``."""
    since: float | None = None
    """Published then or later, in seconds since 1970."""
    also: Collection[Partition] = ()
    """Partitions of these assets to verify whatever the other fields say."""

    def partitions(self, lake: Lake) -> list[Partition]:
        """Return the chosen partitions that are published, sorted."""
        found: list[Partition] = []
        for asset in sorted(self.assets or lake.assets("*")):
            times = lake.published_at(asset)
            keys = [
                Partition(asset, key) for key, at in times.items() if self._names(asset, key, at)
            ]
            also = {item for item in self.also if item.asset == asset and item.key in times}
            found += sorted({*keys, *also}, key=str)
        return found

    def _names(self, asset: str, key: SegmentKey | None, at: float) -> bool:
        if self.share is None:
            return False
        number, shares = self.share
        return (
            (self.crawl is None or (key is not None and key.crawl == self.crawl))
            and (self.since is None or at >= self.since)
            and zlib.crc32(place_of(asset, key).encode()) % shares == number
        )


@dataclass
class Verified:
    """What has been compared so far."""

    partitions: int = 0
    files: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        return (
            f"{self.partitions:,} partitions, {self.files:,} files, {self.bytes / 1e9:,.2f} GB read"
        )


def find_damage(
    lake: Lake, partitions: Collection[Partition], verified: Verified
) -> Iterator[Damage]:
    """Yield each file of the partitions that is missing, cut, changed, or not in the manifest.

    Partitions are read side by side, each from one end to the other; ``verified`` counts. One that
    is replaced or deleted meanwhile has no damage: its files were just written, or are meant to be
    gone. Raises :class:`laion_assets.lake.UnavailableError` if a store does not answer.
    """
    progress = Progress("verify", "partitions", len(partitions), logger)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for files, size, damages in pool.map(lambda item: _compare(lake, item), partitions):
            yield from damages
            verified.partitions += 1
            verified.files += files
            verified.bytes += size
            progress.advance(note=f"{verified.bytes / 1e9:,.1f} GB")
    finally:
        pool.shutdown(cancel_futures=True)


def set_aside(lake: Lake, damages: Iterable[Damage]) -> list[Partition]:
    """Take damaged partitions out of the lake, so that nothing of them is taken over when they are
    made again; return which. One that has been replaced since stays."""
    versions = {damage.partition: damage.version for damage in damages}
    return [
        partition for partition, version in versions.items() if lake.set_aside(*partition, version)
    ]


def _compare(lake: Lake, partition: Partition) -> tuple[int, int, list[Damage]]:
    """Numbers of files and bytes that were read, and the damages of a partition."""
    before = _version(lake, partition)
    try:
        stored = lake.stored(*partition)
        files, size = len(stored.manifest.files), 0
        problems = [(name, "is in no manifest") for name in sorted(stored.others)]
        if not stored.manifest.is_whole:
            problems.append((MANIFEST, "was changed after it was written"))
        for item in stored.manifest.files:
            read, wrong = problem(stored.read(item["name"]), item)
            size += read
            problems += [(item["name"], wrong)] if wrong else []
    except NotPublishedError:
        return 0, 0, []
    except _UNREADABLE as error:
        files, size, problems = 0, 0, [(MANIFEST, unreadable(error))]
    if problems and _version(lake, partition) != before:
        return _compare(lake, partition)
    return files, size, [Damage(partition, *problem, before or "") for problem in problems]


def _version(lake: Lake, partition: Partition) -> str | None:
    keys = None if partition.key is None else [partition.key]
    return lake.versions(partition.asset, keys).get(partition.key)
