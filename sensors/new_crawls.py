"""New crawls: those that `collinfo.json` lists become partitions, and each segment gets a run.

At each tick the sensor compares the wanted segments with the finished ones. It requests a segment
whose run was lost or failed again, a bounded number of times, and only the assets that it lacks.
The list is refetched every `interval_s` seconds by a conditional request. What cannot be read, and
what keeps failing, is retried at growing intervals, and everything else continues meanwhile.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import dagster as dg
from pydantic import BaseModel, Field, ValidationError

from laion_assets.crawl.source import CrawlSource, CrawlSourceError, Listing
from laion_assets.defs.internals import AssetJob
from laion_assets.defs.partitions import crawls
from laion_assets.layout import SegmentKey, segment_assets, segment_names
from laion_assets.settings import Discovery
from resources.crawl_source import CrawlSourceResource
from sensors import segment_runs
from sensors.segment_runs import LAST_ASSET, LOOK_S, TICK_S, SegmentRuns, Trouble, again

NAME: Final = "new_crawl_sensor"
_TRIES: Final = 2
"""Tries of a request in one tick; the next ticks try again."""


def wanted_crawls(listed: Sequence[str], policy: Discovery) -> list[str]:
    """Return the listed crawls that the policy takes, in the order in which to make them.

    ``listed`` is newest first, as the crawl source returns it.
    """
    allowed = [crawl for crawl in listed if not policy.only or crawl in policy.only]
    return sorted(allowed[: policy.newest], reverse=policy.first == "newest")


def wanted_segments(crawl: str, count: int, policy: Discovery) -> list[SegmentKey]:
    """Return the segments that the policy takes of a crawl with ``count`` segments.

    A fraction takes the keys with the lowest digests: the same ones on every machine, and a larger
    fraction takes these and more.
    """
    keys = [SegmentKey(crawl, number) for number in segment_names(count)]
    if policy.fraction < 1:
        digests = sorted(keys, key=lambda key: hashlib.sha256(str(key).encode()).digest())
        keys = sorted(digests[: math.ceil(count * policy.fraction)])
    return keys[: policy.segments]


class _Known(BaseModel):
    """The cursor: what was read from the crawl source."""

    source: str = ""
    """The URLs that all of this was read from."""
    listing: Listing | None = None
    next_look: float = 0.0
    trouble: Trouble | None = None
    """Failure to read the list itself."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Crawl -> number of its segments, which never changes."""
    troubles: dict[str, Trouble] = Field(default_factory=dict)
    """Crawl -> failure to read it: it is not published yet, or damaged."""

    @classmethod
    def read(cls, cursor: str | None, source: str) -> "_Known":
        try:
            known = cls.model_validate_json(cursor or "{}")
        except ValidationError:
            # Edited by hand: all that it held can be refetched.
            known = cls()
        return known if known.source == source else cls(source=source)

    def look_at_list(self, source: CrawlSource, policy: Discovery) -> None:
        """Refetch the list of crawls if that is due."""
        if segment_runs.now() < self.next_look:
            return
        try:
            self.listing = source.listing(self.listing)
        except CrawlSourceError as error:
            # A list that cannot be read is not an empty list: nothing follows from it.
            message = f"the list of crawls could not be read: {error}"
            self.trouble = again(self.trouble, message, policy)
            self.next_look = self.trouble.next_look
        else:
            self.trouble = None
            self.next_look = segment_runs.now() + policy.interval_s

    def count_segments(
        self, source: CrawlSource, wanted: Iterable[str], policy: Discovery
    ) -> list[str]:
        """Count the segments of crawls that are new or were not ready.

        Returns a message about the crawls that must wait for the next tick, if any.
        """
        until, put_off = time.monotonic() + LOOK_S, []
        for crawl in wanted:
            before = self.troubles.get(crawl)
            if crawl in self.counts or (before and segment_runs.now() < before.next_look):
                continue
            if time.monotonic() > until:
                put_off.append(crawl)
                continue
            try:
                count = len(source.segments(crawl))
                if not count:
                    raise CrawlSourceError("0 segments")
            except CrawlSourceError as error:
                self.troubles[crawl] = again(before, f"{crawl}: {error}", policy)
            else:
                self.counts[crawl] = count
                self.troubles.pop(crawl, None)
        return [f"{len(put_off)} crawls wait for the next tick"] if put_off else []


def new_crawl_sensor(
    segment: AssetJob,
    policy: Discovery,
    segments_per_crawl: int,
    subsets: Iterable[str] = (),
    *,
    unchecked: Callable[[], str],
) -> dg.SensorDefinition:
    """``unchecked`` says why nothing may be asked of the crawl source yet; empty if it may be."""
    assets = segment_assets(subsets)

    @dg.sensor(
        name=NAME,
        job=segment,
        minimum_interval_seconds=min(TICK_S, policy.interval_s),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=__doc__,
    )
    def new_crawl_sensor(
        context: dg.SensorEvaluationContext, crawl_source: CrawlSourceResource
    ) -> dg.SensorResult:
        if why := unchecked():
            context.log.warning(why)
            return dg.SensorResult(skip_reason=why)
        options, instance = crawl_source.open().options, context.instance
        tries = min(options.attempts, _TRIES)
        source = CrawlSource(options.model_copy(update={"attempts": tries}))
        known = _Known.read(context.cursor, f"{options.collinfo_url} {options.data_url}")
        known.look_at_list(source, policy)
        listed = known.listing.crawls if known.listing else ()
        wanted = wanted_crawls(listed, policy)
        problems = known.count_segments(source, wanted, policy)
        troubles = [known.trouble, *(known.troubles.get(crawl) for crawl in wanted)]
        problems += [trouble.message for trouble in troubles if trouble]
        taken = {}
        for crawl in wanted:
            count = known.counts.get(crawl, 0)
            if count > segments_per_crawl:
                problems.append(
                    f"{crawl}: {count} segments, but the deployment has partitions for only "
                    f"{segments_per_crawl} (segments_per_crawl)"
                )
            elif count:
                taken[crawl] = count
        run_requests = SegmentRuns(NAME, instance, policy, assets)
        made = instance.get_materialized_partitions(dg.AssetKey(LAST_ASSET))
        missing = [
            key
            for crawl, count in taken.items()
            for key in wanted_segments(crawl, count, policy)
            if str(key) not in made
        ]
        requests = run_requests.choose(missing)
        problems += run_requests.problems()
        for problem in problems:
            context.log.warning(problem)
        known_partitions = instance.get_dynamic_partitions(crawls.name or "")
        unseen = sorted(crawl for crawl in taken if crawl not in known_partitions)
        summary = (
            f"{len(listed)} crawls listed, {len(taken)} selected, {len(missing)} segments to build"
        )
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else "; ".join([summary, *problems]),
            dynamic_partitions_requests=[crawls.build_add_request(unseen)] if unseen else [],
            cursor=known.model_dump_json(exclude_defaults=True),
        )

    return new_crawl_sensor
