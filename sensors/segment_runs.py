"""Segments that lack assets, and the requests of their runs: what the sensors of crawls and of URL
lists share.

Which segments are wanted does not belong here.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
from pydantic import BaseModel

from laion_assets.defs.partitions import (
    INTERRUPTED_TAG,
    PARTITION_TAG,
    UNFINISHED,
    partition_key,
)
from laion_assets.layout import LIST_PREFIX, SEGMENT_ASSETS, SegmentKey
from laion_assets.settings import Discovery
from sensors.runs import SENSOR_TAG, runs_by_tag

LAST_ASSET: Final = SEGMENT_ASSETS[-1]
PRIORITY_TAG: Final = "dagster/priority"
ROOT_TAG: Final = "dagster/root_run_id"
"""Name of the tag in which Dagster keeps, for a retry of a run, the first run's id."""
WANTED_TAG: Final = "laion_assets/segment_id"
"""Name of the tag of a run of a changed segment: the id of what the segment is to be made of."""
TICK_S: Final = 60
"""Seconds between two ticks: finished and failed runs are noticed that soon, whatever
`interval_s` is."""
LOOK_S: Final = 10.0
"""Seconds of one tick for counting the segments of crawls; Dagster ends a tick after 60 s."""
_BELOW_PEOPLE: Final = 1_000_000
"""Larger than any year and week that a crawl's name can hold."""
_RETRY_PATIENCE: Final = timedelta(minutes=15)
"""How long Dagster's own retry of a lost run is awaited before a sensor requests the run."""


def priority(crawl: str) -> int:
    """Return the priority of a segment's runs in Dagster's queue: the newer the crawl, the higher;
    above them a list, which somebody has asked for by name.

    It is always below 0, the priority of runs that a person, the automation or a removal starts.
    """
    if crawl.startswith(LIST_PREFIX):
        return -1
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


class Trouble(BaseModel):
    """A read that failed, how many times in a row, and when to try again."""

    what: str
    times: int
    next_look: float
    """Seconds since the epoch."""

    @property
    def message(self) -> str:
        often = f" ({self.times} times in a row)" if self.times > 1 else ""
        return f"{self.what}{often}; next try at {_time(self.next_look)}"


def again(before: Trouble | None, what: str, policy: Discovery) -> Trouble:
    times = before.times + 1 if before else 1
    return Trouble(what=what, times=times, next_look=now() + _wait(times, policy))


def _wait(times: int, policy: Discovery) -> float:
    # Trouble that nobody ends must not double the wait beyond what a float can hold.
    return min(policy.interval_s * 2.0 ** min(times - 1, 32), policy.longest_back_off_s)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes")


class SegmentRuns:
    """Chooses which of the missing segments to request in this tick.

    Create it before reading the materialized partitions: a run that finishes in between is then
    seen either as in flight or as done, never as missing.
    """

    def __init__(
        self, sensor: str, instance: dg.DagsterInstance, policy: Discovery, assets: Sequence[str]
    ) -> None:
        self._sensor = sensor
        self._instance, self._policy, self._assets = instance, policy, assets
        self.given_up: dict[str, float] = {}
        """Partition whose attempts are used up -> when it is requested again, since the epoch."""
        self.canceled: list[str] = []
        """Partitions whose last run a person canceled."""
        self.unchanged: list[str] = []
        """Changed partitions whose last run has succeeded, and was to make them as they are to be
        now: another would do no more."""
        self._in_flight = {
            data.partition
            for data in instance.get_run_partition_data(dg.RunsFilter(statuses=UNFINISHED))
        }

    def choose(
        self, missing: Sequence[SegmentKey], changed: Mapping[SegmentKey, str] | None = None
    ) -> list[dg.RunRequest]:
        """Return the requests for this tick; ``missing`` is in the order of preference.

        Of those that have ``changed``, each with the id of what it is to be made of, all assets are
        requested, made or not.
        """
        changed = changed or {}
        room = self._room() if missing else 0
        chosen: dict[SegmentKey, str] = {}
        for key, last in self._idle(missing, changed) if room > 0 else ():
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
                tags=self._tags(key, changed.get(key)),
            )
            for key, last in chosen.items()
            # To Dagster, an empty selection means the whole job.
            if (names := self._assets if key in changed else lacking(key, made, self._assets))
        ]

    def _room(self) -> int:
        own = dg.RunsFilter(statuses=UNFINISHED, tags={SENSOR_TAG: self._sensor})
        return self._policy.at_most - self._instance.get_runs_count(own)

    def _idle(
        self, missing: Sequence[SegmentKey], changed: Mapping[SegmentKey, str]
    ) -> Iterator[tuple[SegmentKey, str]]:
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
            wanted = changed.get(keys[partition])
            if wanted and records and _has_made(records[0].dagster_run, wanted):
                self.unchanged.append(partition)
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

    def _tags(self, key: SegmentKey, wanted: str | None) -> dict[str, str]:
        newest = self._policy.first == "newest"
        tags = {PRIORITY_TAG: str(priority(key.crawl))} if newest else {}
        return tags | {WANTED_TAG: wanted} if wanted else tags

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
        if self.unchanged:
            messages.append(
                "made again, and still of other rows than this sensor sees; see whether the files "
                f"are the same where runs work: {_some(self.unchanged)}"
            )
        return messages


def _has_made(run: dg.DagsterRun, wanted: str) -> bool:
    return run.status == dg.DagsterRunStatus.SUCCESS and run.tags.get(WANTED_TAG) == wanted


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


def _some(partitions: Collection[str]) -> str:
    more = f" and {len(partitions) - 10} more" if len(partitions) > 10 else ""
    return ", ".join(list(partitions)[:10]) + more
