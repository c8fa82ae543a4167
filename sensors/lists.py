"""Changed removal lists and blocklists: a run is asked for that looks which partitions they
concern, and, where the deployment wants that, runs that make these again."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from laion_assets.defs.assets.lists import BEFORE_TAG
from laion_assets.defs.jobs import LISTS, segment_assets
from laion_assets.defs.partitions import UNFINISHED, partition_key, segment_key
from laion_assets.lake import Lake
from laion_assets.removals.active import FOLDERS, read_lists, text_digests
from laion_assets.removals.lists import ListError
from laion_assets.removals.options import RemovalOptions
from resources.lake import LakeResource
from sensors.runs import runs_by_tag

LISTS_TAG: Final = "laion_assets/lists"
"""Tag of a run that observes: its turn, and the digest of all lists in force."""
REMAKE_TAG: Final = "laion_assets/lists_remake"
"""Tag of a run that makes a partition again: the turn, the partition and what told of it."""
_AT_ONCE: Final = 1000


class _Remake(NamedTuple):
    """A partition that is to be made again."""

    attempt: int
    told: int
    """Storage id of the observation that said so: of a later one it must be made once more. 0 in
    cursors of earlier versions, which did not keep it."""

    def tag(self, turn: str, partition: str) -> str:
        return f"{turn}:{partition}:{self.told}" if self.told else f"{turn}:{partition}"


_Remakes = dict[str, _Remake]


def _read(instance: dg.DagsterInstance, cursor: str | None) -> dict[str, Any]:
    """What the cursor says, of an earlier version, too; nothing if it says nothing that can be
    understood: the lists are looked for again then."""
    try:
        seen = json.loads(cursor or "{}")
        remakes = {
            partition: _Remake(told, 0) if isinstance(told, int) else _Remake(*map(int, told))
            for partition, told in seen.get("remakes", {}).items()
        }
    except (ValueError, TypeError, AttributeError):
        return {}
    if "version" in seen:
        seen.setdefault("observed", _last_told(instance))
    return {**seen, "remakes": remakes} if seen else {}


def _told(
    instance: dg.DagsterInstance, after: int, run_id: str | None = None
) -> tuple[dict[str, int], int]:
    """The partitions that runs, or this one, have observed since the storage id ``after``, each
    with the id of the last observation; and the last id of all.

    A run that looks tells of what it finds; one that makes a partition while the lists change
    tells of it. What ``laion-assets remove`` tells, by itself, it makes again by itself.
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


def _last_told(instance: dg.DagsterInstance) -> int:
    records = [
        record
        for name in LISTS
        for record in instance.fetch_observations(dg.AssetKey(name), limit=1).records
    ]
    return max((record.storage_id for record in records), default=0)


def _requests(
    lake: Lake, assets: Sequence[str], remakes: _Remakes, turn: str
) -> list[dg.RunRequest]:
    """All that a segment has of what may hold a sample, made again; of ``remakes`` are taken out
    those of which nothing is there (any more)."""
    requests = []
    for partition, remake in list(remakes.items()):
        key = segment_key(partition)
        made = [name for name in assets[1:] if lake.has(name, key)]
        if not made:
            # A selection of nothing is the whole job to Dagster.
            del remakes[partition]
            continue
        requests.append(
            dg.RunRequest(
                run_key=f"{remake.tag(turn, partition)}#{remake.attempt}",
                job_name="segment",
                partition_key=partition_key(key),
                asset_selection=[dg.AssetKey(name) for name in made],
                tags={REMAKE_TAG: remake.tag(turn, partition)},
            )
        )
    return requests


def _follow(
    lake: Lake,
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    seen: Mapping[str, Any],
    options: RemovalOptions,
) -> dg.SensorResult | dg.SkipReason:
    """Ask for the partitions that were told of since, and again for those whose run failed; forget
    those that have been made."""
    remakes: _Remakes = dict(seen["remakes"])
    turn = f"{seen.get('turn', 0)}:{seen['version']}"
    again: _Remakes = {}
    given_up = []
    tags = {remake.tag(turn, partition): partition for partition, remake in remakes.items()}
    for tag, records in runs_by_tag(instance, REMAKE_TAG, list(tags)):
        partition, remake = tags[tag], remakes[tags[tag]]
        runs = [record.dagster_run for record in records]
        if any(run.status == dg.DagsterRunStatus.SUCCESS for run in runs):
            del remakes[partition]
        elif len(runs) >= remake.attempt and not any(
            run.status in UNFINISHED or run.is_complete_and_waiting_to_retry for run in runs
        ):
            if remake.attempt >= options.attempts:
                given_up.append(partition)
            else:
                again[partition] = remake._replace(attempt=remake.attempt + 1)
    told, last = _told(instance, seen["observed"])
    if options.automatic:
        again |= {partition: _Remake(1, at) for partition, at in told.items()}
    reason = "no list has changed"
    if given_up:
        reason += f"; given up after {options.attempts} failed runs: {', '.join(given_up)}"
    remakes = {key: old for key, old in remakes.items() if key not in again}
    requests = _requests(lake, assets, again, turn)
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else reason,
        cursor=json.dumps({**seen, "observed": last, "remakes": remakes | again}),
    )


def lists_sensor(
    observe: UnresolvedAssetJobDefinition,
    segment: UnresolvedAssetJobDefinition,
    options: RemovalOptions,
    subsets: Iterable[str] = (),
) -> dg.SensorDefinition:
    """The cursor is what the last run looked for that succeeded: while the lists stay that, a tick
    reads no more than their files' names, sizes and times."""

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
        store, instance = lake.open(), context.instance
        try:
            root = store.current(*FOLDERS)
            lists, texts = read_lists(root), text_digests(root)
        except ListError as error:
            # As the runs do: nothing is made without a list that cannot be read.
            raise dg.Failure(f"a list cannot be understood: {error}") from error
        told = json.dumps([lists.digests, texts], sort_keys=True)
        version = hashlib.sha256(told.encode()).hexdigest()[:16]
        seen = _read(instance, context.cursor)
        if seen.get("version") == version:
            return _follow(store, instance, assets, seen, options)
        # Lists may become again what they were: a turn is never one that was before.
        turn = f"{seen.get('turn', 0) + 1}:{version}"
        after = {"version": version, "texts": texts, "turn": seen.get("turn", 0) + 1}
        if not seen and not lists:
            after["observed"] = _last_told(instance)
            return dg.SensorResult(skip_reason="no list has an entry", cursor=json.dumps(after))
        runs = instance.get_runs(dg.RunsFilter(tags={LISTS_TAG: turn}))
        done = [run for run in runs if run.status == dg.DagsterRunStatus.SUCCESS]
        if done:
            # With what other runs have told meanwhile.
            since = seen.get("observed")
            only = done[0].run_id if since is None else None
            concerned, after["observed"] = _told(instance, since or 0, only)
            remakes = {}
            if options.automatic:
                # With those of the last turn that have not been made yet.
                wanted = {partition: old.told for partition, old in seen.get("remakes", {}).items()}
                remakes = {
                    key: _Remake(1, at) for key, at in sorted({**wanted, **concerned}.items())
                }
            requests = _requests(store, assets, remakes, turn)
            after["remakes"] = remakes
            reason = f"the lists concern {len(concerned)} partitions; see {done[0].run_id[:8]}"
            return dg.SensorResult(
                run_requests=requests,
                skip_reason=None if requests else reason,
                cursor=json.dumps(after),
            )
        if any(run.status in UNFINISHED for run in runs):
            return dg.SkipReason("a run looks which partitions the lists concern")
        if len(runs) >= options.attempts:
            return dg.SkipReason(f"given up after {len(runs)} failed runs: see {runs[0].run_id}")
        before = seen.get("texts", {})
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    run_key=f"{turn}#{len(runs)}",
                    job_name="observe_lists",
                    tags={
                        LISTS_TAG: turn,
                        **{BEFORE_TAG + name: before[name] for name in LISTS if name in before},
                    },
                )
            ]
        )

    return lists_sensor
