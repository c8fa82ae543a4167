"""Changed removal lists and blocklists: a run looks for the partitions that the change concerns.
Where `[removals] automatic` is set, further runs rebuild these partitions."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import dagster as dg
from pydantic import BaseModel, Field, ValidationError

from laion_assets.defs.assets.lists import BEFORE_TAG
from laion_assets.defs.internals import AssetJob
from laion_assets.defs.partitions import UNFINISHED, partition_key, segment_key
from laion_assets.lake import Lake
from laion_assets.layout import LISTS, segment_assets
from laion_assets.removals.active import FOLDERS, read_lists, text_digests
from laion_assets.removals.entry import ListError
from laion_assets.removals.options import RemovalOptions
from resources.lake import LakeResource
from sensors.runs import runs_by_tag

LISTS_TAG: Final = "laion_assets/lists"
"""Tag of a run that looks for the partitions: the change's number and the digest of all lists."""
REMAKE_TAG: Final = "laion_assets/lists_remake"
"""Tag of a run that rebuilds a partition: the change, the partition and the observation."""
_AT_ONCE: Final = 1000
"""Observations in one query."""


class _Remake(NamedTuple):
    """The rebuild of a partition."""

    attempt: int
    observation: int
    """Storage id of the observation that called for it; a later one calls for another rebuild."""

    def tag(self, change: str, partition: str) -> str:
        return f"{change}:{partition}:{self.observation}"


_Remakes = Mapping[str, _Remake]


class _Cursor(BaseModel, frozen=True):
    """The change of the lists that a successful run has looked for last, and what followed."""

    version: str = ""
    """Digest of all lists in force; empty before the first look."""
    texts: dict[str, str] = Field(default_factory=dict)
    """List -> digest of the entries in its text files."""
    turn: int = 0
    """Number of the change. Lists may become again what they were; a number never comes back."""
    observed: int | None = None
    """Storage id of the last observation that has been read; None before the first look."""
    remakes: dict[str, _Remake] = Field(default_factory=dict)
    """Partition -> its rebuild, until that has succeeded."""

    @classmethod
    def read(cls, cursor: str | None) -> "_Cursor":
        try:
            return cls.model_validate_json(cursor or "{}")
        except ValidationError:
            # Edited by hand: the lists are looked for again.
            return cls()

    @property
    def change(self) -> str:
        return f"{self.turn}:{self.version}"


def _observations(
    instance: dg.DagsterInstance, after: int, run_id: str | None = None
) -> tuple[dict[str, int], int]:
    """Read the observations of the lists with storage ids above ``after``.

    Returns the partitions that runs, or only the run ``run_id``, have observed, each with the
    storage id of its last observation; and the highest storage id of all observations.

    Runs record observations for what a look finds, and for a partition that was made while the
    lists changed. Observations without a run come from ``laion-assets remove``, which rebuilds
    those partitions itself; skip them.
    """
    partitions: dict[str, int] = {}
    last = after
    for name in LISTS:
        wanted = dg.AssetRecordsFilter(dg.AssetKey(name), after_storage_id=after)
        cursor, more = None, True
        while more:
            found = instance.fetch_observations(wanted, _AT_ONCE, cursor=cursor, ascending=True)
            cursor, more = found.cursor, found.has_more
            for record in found.records:
                last = max(last, record.storage_id)
                by_run = record.run_id == run_id if run_id else record.run_id
                if by_run and record.partition_key:
                    partitions[record.partition_key] = record.storage_id
    return partitions, last


def _last_observation(instance: dg.DagsterInstance) -> int:
    """Return the highest storage id of all observations of the lists, 0 without any."""
    records = [
        record
        for name in LISTS
        for record in instance.fetch_observations(dg.AssetKey(name), limit=1).records
    ]
    return max((record.storage_id for record in records), default=0)


@dataclass(frozen=True)
class _Tick:
    """What one tick may do about the lists; each method returns the tick's result."""

    lake: Lake
    instance: dg.DagsterInstance
    assets: Sequence[str]
    """A segment's assets, in the order of processing."""
    options: RemovalOptions

    def observe(self, seen: _Cursor, now: _Cursor) -> dg.SensorResult | dg.SkipReason:
        """Request a run that looks for the partitions that the lists concern ``now``.

        If it has failed, request it again a few times. Once it has succeeded, begin the rebuilds.
        """
        runs = self.instance.get_runs(dg.RunsFilter(tags={LISTS_TAG: now.change}))
        for run in runs:
            if run.status == dg.DagsterRunStatus.SUCCESS:
                return self.begin_remakes(seen, now, run.run_id)
        if any(run.status in UNFINISHED for run in runs):
            return dg.SkipReason("a run is looking for the partitions that the lists concern")
        if len(runs) >= self.options.attempts:
            return dg.SkipReason(f"given up after {len(runs)} failed runs: see {runs[0].run_id}")
        before = {BEFORE_TAG + name: seen.texts[name] for name in LISTS if name in seen.texts}
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    run_key=f"{now.change}#{len(runs)}",
                    job_name="observe_lists",
                    tags={LISTS_TAG: now.change, **before},
                )
            ]
        )

    def begin_remakes(self, seen: _Cursor, now: _Cursor, run_id: str) -> dg.SensorResult:
        """Request rebuilds of what the run ``run_id`` has found, and of what other runs have
        observed meanwhile."""
        only = run_id if seen.observed is None else None
        found, last = _observations(self.instance, seen.observed or 0, only)
        remakes: _Remakes = {}
        if self.options.automatic:
            # With those of the previous change that have not been rebuilt yet.
            unfinished = {partition: old.observation for partition, old in seen.remakes.items()}
            observed = sorted({**unfinished, **found}.items())
            remakes = {partition: _Remake(1, observation) for partition, observation in observed}
        requests, remakes = self._requests(now.change, remakes)
        reason = f"the lists concern {len(found)} partitions; see {run_id[:8]}"
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else reason,
            cursor=now.model_copy(update={"observed": last, "remakes": remakes}).model_dump_json(),
        )

    def follow(self, seen: _Cursor) -> dg.SensorResult:
        """Request rebuilds of partitions that were observed since, and again of those whose run
        failed; forget those that have been rebuilt."""
        remakes, again, given_up = self._judge(seen)
        observed, last = _observations(self.instance, seen.observed or 0)
        if self.options.automatic:
            again |= {partition: _Remake(1, at) for partition, at in observed.items()}
        kept = {partition: old for partition, old in remakes.items() if partition not in again}
        requests, again = self._requests(seen.change, again)
        reason = "no list has changed"
        if given_up:
            attempts = self.options.attempts
            reason += f"; given up after {attempts} failed runs: {', '.join(given_up)}"
        after = seen.model_copy(update={"observed": last, "remakes": kept | again})
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else reason,
            cursor=after.model_dump_json(),
        )

    def _judge(self, seen: _Cursor) -> tuple[dict[str, _Remake], dict[str, _Remake], list[str]]:
        """Return the rebuilds that have not succeeded yet; those of them that are to be requested
        again; and the partitions whose attempts are used up."""
        remakes, again, given_up = dict(seen.remakes), dict[str, _Remake](), list[str]()
        tags = {
            remake.tag(seen.change, partition): partition for partition, remake in remakes.items()
        }
        for tag, records in runs_by_tag(self.instance, REMAKE_TAG, list(tags)):
            partition = tags[tag]
            remake = remakes[partition]
            runs = [record.dagster_run for record in records]
            if any(run.status == dg.DagsterRunStatus.SUCCESS for run in runs):
                del remakes[partition]
            elif len(runs) >= remake.attempt and not any(
                run.status in UNFINISHED or run.is_complete_and_waiting_to_retry for run in runs
            ):
                if remake.attempt >= self.options.attempts:
                    given_up.append(partition)
                else:
                    again[partition] = remake._replace(attempt=remake.attempt + 1)
        return remakes, again, given_up

    def _requests(
        self, change: str, remakes: _Remakes
    ) -> tuple[list[dg.RunRequest], dict[str, _Remake]]:
        """Request runs that rebuild all existing assets of each segment that may hold samples.

        Returns the requests and their part of ``remakes``: segments without such assets are left
        out.
        """
        requests, requested = [], {}
        for partition, remake in remakes.items():
            key = segment_key(partition)
            made = [name for name in self.assets[1:] if self.lake.has(name, key)]
            if not made:
                # To Dagster, an empty selection means the whole job.
                continue
            tag = remake.tag(change, partition)
            requested[partition] = remake
            requests.append(
                dg.RunRequest(
                    run_key=f"{tag}#{remake.attempt}",
                    job_name="segment",
                    partition_key=partition_key(key),
                    asset_selection=[dg.AssetKey(name) for name in made],
                    tags={REMAKE_TAG: tag},
                )
            )
        return requests, requested


def lists_sensor(
    observe: AssetJob,
    segment: AssetJob,
    options: RemovalOptions,
    subsets: Iterable[str] = (),
) -> dg.SensorDefinition:
    """Build the sensor. While the lists do not change, a tick reads only their files' names, sizes
    and times."""

    assets = segment_assets(subsets)

    @dg.sensor(
        name="lists_sensor",
        jobs=[observe, segment],
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=__doc__,
    )
    def lists_sensor(
        context: dg.SensorEvaluationContext, lake: LakeResource
    ) -> dg.SensorResult | dg.SkipReason:
        store = lake.open()
        try:
            root = store.current(*FOLDERS)
            lists, texts = read_lists(root), text_digests(root)
        except ListError as error:
            # The runs refuse such a list, too: nothing is made without it.
            raise dg.Failure(f"a list cannot be understood: {error}") from error
        digests = json.dumps([lists.digests, texts], sort_keys=True)
        version = hashlib.sha256(digests.encode()).hexdigest()[:16]
        seen = _Cursor.read(context.cursor)
        tick = _Tick(store, context.instance, assets, options)
        if seen.version == version:
            return tick.follow(seen)
        now = _Cursor(version=version, texts=texts, turn=seen.turn + 1)
        if seen.version or lists:
            return tick.observe(seen, now)
        now = now.model_copy(update={"observed": _last_observation(context.instance)})
        return dg.SensorResult(skip_reason="no list has an entry", cursor=now.model_dump_json())

    return lists_sensor
