"""New crawls: those that `collinfo.json` lists become partitions, and each segment gets a run.

At each tick the sensor compares the wanted segments with the finished ones. It requests a segment
whose run was lost or failed again, a bounded number of times, and only the assets that it lacks.
The list is refetched every `interval_s` seconds by a conditional request. What cannot be read, and
what keeps failing, is retried at growing intervals, and everything else continues meanwhile.
"""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
from pydantic import BaseModel, Field, ValidationError

from laion_assets.crawl.source import CrawlSource, CrawlSourceError, Listing
from laion_assets.defs.internals import AssetJob
from laion_assets.defs.partitions import (
    INTERRUPTED_TAG,
    PARTITION_TAG,
    UNFINISHED,
    crawls,
    partition_key,
)
from laion_assets.layout import SEGMENT_ASSETS, SegmentKey, segment_assets, segment_names
from laion_assets.settings import Discovery
from resources.crawl_source import CrawlSourceResource
from sensors.runs import SENSOR_TAG, runs_by_tag

NAME: Final = "new_crawl_sensor"
LAST_ASSET: Final = SEGMENT_ASSETS[-1]
PRIORITY_TAG: Final = "dagster/priority"
ROOT_TAG: Final = "dagster/root_run_id"
"""Name of the tag in which Dagster keeps, for a retry of a run, the first run's id."""
_BELOW_PEOPLE: Final = 1_000_000
"""Larger than any year and week that a crawl's name can hold."""
_TICK_S: Final = 60
"""Seconds between two ticks: finished and failed runs are noticed that soon, whatever
`interval_s` is."""
_LOOK_S: Final = 10.0
"""Seconds of one tick for counting the segments of crawls; Dagster ends a tick after 60 s."""
_TRIES: Final = 2
"""Tries of a request in one tick; the next ticks try again."""
_RETRY_PATIENCE: Final = timedelta(minutes=15)
"""How long Dagster's own retry of a lost run is awaited before the sensor requests the run."""


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


def priority(crawl: str) -> int:
    """Return the priority of a segment's runs in Dagster's queue: the newer the crawl, the higher.

    It is always below 0, the priority of runs that a person, the automation or a removal starts.
    """
    _, _, year, week, *_ = crawl.split("-")
    return int(year) * 100 + int(week) - _BELOW_PEOPLE


def lacking(
    key: SegmentKey, made: Mapping[str, Collection[str]], assets: Sequence[str] = SEGMENT_ASSETS
) -> list[str]:
    """Return the assets to make of a segment: the first that is missing, and all after it.

    ``made`` maps each asset to the partitions that are materialized.
    """
    partition = str(partition_key(key))
    for place, asset in enumerate(assets):
        if partition not in made[asset]:
            return list(assets[place:])
    return []


def now() -> float:
    return time.time()


class _Trouble(BaseModel):
    """A read that failed, how many times in a row, and when to try again."""

    what: str
    times: int
    next_look: float
    """Seconds since the epoch."""

    @property
    def message(self) -> str:
        often = f" ({self.times} times in a row)" if self.times > 1 else ""
        return f"{self.what}{often}; next try at {_time(self.next_look)}"


class _Known(BaseModel):
    """The cursor: what was read from the crawl source."""

    source: str = ""
    """The URLs that all of this was read from."""
    listing: Listing | None = None
    next_look: float = 0.0
    trouble: _Trouble | None = None
    """Failure to read the list itself."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Crawl -> number of its segments, which never changes."""
    troubles: dict[str, _Trouble] = Field(default_factory=dict)
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
        if now() < self.next_look:
            return
        try:
            self.listing = source.listing(self.listing)
        except CrawlSourceError as error:
            # A list that cannot be read is not an empty list: nothing follows from it.
            message = f"the list of crawls could not be read: {error}"
            self.trouble = _again(self.trouble, message, policy)
            self.next_look = self.trouble.next_look
        else:
            self.trouble = None
            self.next_look = now() + policy.interval_s

    def count_segments(
        self, source: CrawlSource, wanted: Iterable[str], policy: Discovery
    ) -> list[str]:
        """Count the segments of crawls that are new or were not ready.

        Returns a message about the crawls that must wait for the next tick, if any.
        """
        until, put_off = time.monotonic() + _LOOK_S, []
        for crawl in wanted:
            before = self.troubles.get(crawl)
            if crawl in self.counts or (before and now() < before.next_look):
                continue
            if time.monotonic() > until:
                put_off.append(crawl)
                continue
            try:
                count = len(source.segments(crawl))
                if not count:
                    raise CrawlSourceError("0 segments")
            except CrawlSourceError as error:
                self.troubles[crawl] = _again(before, f"{crawl}: {error}", policy)
            else:
                self.counts[crawl] = count
                self.troubles.pop(crawl, None)
        return [f"{len(put_off)} crawls wait for the next tick"] if put_off else []


def _again(before: _Trouble | None, what: str, policy: Discovery) -> _Trouble:
    times = before.times + 1 if before else 1
    return _Trouble(what=what, times=times, next_look=now() + _wait(times, policy))


def _wait(times: int, policy: Discovery) -> float:
    # Trouble that nobody ends must not double the wait beyond what a float can hold.
    return min(policy.interval_s * 2.0 ** min(times - 1, 32), policy.longest_back_off_s)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes")


def _waits_for_dagster(record: dg.RunRecord) -> bool:
    """Return True if Dagster itself is about to retry the run, as it does after a lost worker."""
    ended = record.update_timestamp.replace(tzinfo=UTC)
    recent = datetime.now(UTC) - ended < _RETRY_PATIENCE
    return record.dagster_run.is_complete_and_waiting_to_retry and recent


def _ended(record: dg.RunRecord) -> float:
    return record.end_time or record.update_timestamp.replace(tzinfo=UTC).timestamp()


def _failures(newest_first: Iterable[dg.DagsterRun]) -> int:
    """Count the failed runs since the last success; a run and Dagster's own retries count once."""
    failed = set()
    for run in newest_first:
        if run.status == dg.DagsterRunStatus.SUCCESS:
            break
        if run.status == dg.DagsterRunStatus.FAILURE and INTERRUPTED_TAG not in run.tags:
            failed.add(run.tags.get(ROOT_TAG, run.run_id))
    return len(failed)


class _RunRequests:
    """Chooses which of the missing segments to request in this tick.

    Create it before reading the materialized partitions: a run that finishes in between is then
    seen either as in flight or as done, never as missing.
    """

    def __init__(
        self, instance: dg.DagsterInstance, policy: Discovery, assets: Sequence[str]
    ) -> None:
        self._instance, self._policy, self._assets = instance, policy, assets
        self.given_up: dict[str, float] = {}
        """Partition whose attempts are used up -> when it is requested again, since the epoch."""
        self.canceled: list[str] = []
        """Partitions whose last run a person canceled."""
        self._in_flight = {
            data.partition
            for data in instance.get_run_partition_data(dg.RunsFilter(statuses=UNFINISHED))
        }

    def choose(self, missing: Sequence[SegmentKey]) -> list[dg.RunRequest]:
        """Return the requests for this tick; ``missing`` is in the order of preference."""
        room = self._room() if missing else 0
        chosen: dict[SegmentKey, str] = {}
        for key, last in self._idle(missing) if room > 0 else ():
            chosen[key] = last
            if len(chosen) == room:
                break
        partitions = {str(partition_key(key)) for key in chosen}
        made = {
            asset: self._instance.get_latest_storage_id_by_partition(
                dg.AssetKey(asset), dg.DagsterEventType.ASSET_MATERIALIZATION, partitions
            )
            for asset in (self._assets if chosen else ())
        }
        return [
            dg.RunRequest(
                # Holds the segment's last run, so that the same request twice is harmless.
                run_key=f"{key}#{last}",
                partition_key=partition_key(key),
                asset_selection=[dg.AssetKey(name) for name in names],
                tags=self._tags(key),
            )
            for key, last in chosen.items()
            # To Dagster, an empty selection means the whole job.
            if (names := lacking(key, made, self._assets))
        ]

    def _room(self) -> int:
        own = dg.RunsFilter(statuses=UNFINISHED, tags={SENSOR_TAG: NAME})
        return self._policy.at_most - self._instance.get_runs_count(own)

    def _idle(self, missing: Sequence[SegmentKey]) -> Iterator[tuple[SegmentKey, str]]:
        """Yield the segments to request, each with the short id of its last run, or ``"0"``.

        Once `at_most` segments are given up, the fault is hardly in the segments: nothing more is
        requested until one of them is due again.
        """
        keys = {str(key): key for key in missing if str(key) not in self._in_flight}
        for partition, records in runs_by_tag(self._instance, PARTITION_TAG, list(keys)):
            if any(_waits_for_dagster(record) for record in records):
                continue
            if records and records[0].dagster_run.status == dg.DagsterRunStatus.CANCELED:
                self.canceled.append(partition)
                continue
            beyond = _failures(record.dagster_run for record in records) - self._policy.attempts
            if beyond >= 0:
                until = _ended(records[0]) + _wait(beyond + 1, self._policy)
                if now() < until:
                    self.given_up[partition] = until
                    if len(self.given_up) >= self._policy.at_most:
                        return
                    continue
            yield keys[partition], records[0].dagster_run.run_id[:8] if records else "0"

    def _tags(self, key: SegmentKey) -> dict[str, str]:
        newest = self._policy.first == "newest"
        return {PRIORITY_TAG: str(priority(key.crawl))} if newest else {}

    def problems(self) -> list[str]:
        """Return messages about the segments that were not chosen for a reason."""
        messages = []
        if self.given_up:
            messages.append(
                f"given up after {self._policy.attempts} failed runs: {_some(self.given_up)}; "
                f"requested again from {_time(min(self.given_up.values()))} on"
            )
            if len(self.given_up) >= self._policy.at_most:
                messages.append(
                    "nothing else is requested until then, or until you materialize some yourself"
                )
        if self.canceled:
            messages.append(f"canceled; materialize them yourself: {_some(self.canceled)}")
        return messages


def _some(partitions: Collection[str]) -> str:
    more = f" and {len(partitions) - 10} more" if len(partitions) > 10 else ""
    return ", ".join(list(partitions)[:10]) + more


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
        minimum_interval_seconds=min(_TICK_S, policy.interval_s),
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
        run_requests = _RunRequests(instance, policy, assets)
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
