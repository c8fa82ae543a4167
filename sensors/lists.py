"""Changed removal lists and blocklists: a run is asked for that looks which partitions they
concern, and, where the deployment wants that, runs that make these again."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from laion_assets.assets.outside import BEFORE_TAG
from laion_assets.jobs import LISTS, segment_assets
from laion_assets.lake import Lake
from laion_assets.partitions import UNFINISHED, partition_key, segment_key
from laion_assets.removals.in_force import FOLDERS, read_lists, text_digests
from laion_assets.removals.lists import ListError
from laion_assets.removals.options import RemovalOptions
from resources.lake import LakeResource

LISTS_TAG: Final = "laion_assets/lists"
"""Tag of a run that observes: its turn, and the digest of all lists in force."""
REMAKE_TAG: Final = "laion_assets/lists_remake"
"""Tag of a run that makes a partition again: the turn and the partition."""


def _concerned(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """The partitions that a run has observed."""
    logs = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION)
    events = [entry.dagster_event.partition for entry in logs if entry.dagster_event]
    return sorted({partition for partition in events if partition})


def _remakes(
    lake: Lake, assets: Sequence[str], attempts: Mapping[str, int], turn: str
) -> list[dg.RunRequest]:
    """All that a segment has of what may hold a sample, made again; ``attempts`` by partition."""
    requests = []
    for partition, attempt in attempts.items():
        key = segment_key(partition)
        made = [name for name in assets[1:] if lake.has(name, key)]
        requests.append(
            dg.RunRequest(
                run_key=f"{turn}:{partition}#{attempt}",
                job_name="segment",
                partition_key=partition_key(key),
                asset_selection=[dg.AssetKey(name) for name in made],
                tags={REMAKE_TAG: f"{turn}:{partition}"},
            )
        )
    return requests


def _follow(
    lake: Lake,
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    seen: Mapping[str, Any],
    attempts: int,
) -> dg.SensorResult | dg.SkipReason:
    """Ask again for the partitions whose run failed; forget those that have been made."""
    remakes = dict(seen.get("remakes", {}))
    turn = f"{seen.get('turn', 0)}:{seen['version']}"
    again: dict[str, int] = {}
    given_up = []
    for partition, attempt in list(remakes.items()):
        runs = instance.get_runs(dg.RunsFilter(tags={REMAKE_TAG: f"{turn}:{partition}"}))
        if any(run.status == dg.DagsterRunStatus.SUCCESS for run in runs):
            del remakes[partition]
        elif len(runs) >= attempt and not any(run.status in UNFINISHED for run in runs):
            if attempt >= attempts:
                given_up.append(partition)
            else:
                again[partition] = remakes[partition] = attempt + 1
    reason = "no list has changed"
    if given_up:
        reason += f"; given up after {attempts} failed runs: {', '.join(given_up)}"
    return dg.SensorResult(
        run_requests=_remakes(lake, assets, again, turn),
        skip_reason=None if again else reason,
        cursor=json.dumps({**seen, "remakes": remakes}),
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
        seen = json.loads(context.cursor) if context.cursor else {}
        if seen.get("version") == version:
            return _follow(store, instance, assets, seen, options.attempts)
        # Lists may become again what they were: a turn is never one that was before.
        turn = f"{seen.get('turn', 0) + 1}:{version}"
        after = {"version": version, "texts": texts, "turn": seen.get("turn", 0) + 1}
        if not seen and not lists:
            return dg.SensorResult(skip_reason="no list has an entry", cursor=json.dumps(after))
        runs = instance.get_runs(dg.RunsFilter(tags={LISTS_TAG: turn}))
        done = [run for run in runs if run.status == dg.DagsterRunStatus.SUCCESS]
        if done:
            partitions = _concerned(instance, done[0].run_id)
            # With those of the last turn that have not been made yet.
            wanted = {*partitions, *seen.get("remakes", {})} if options.automatic else set()
            after["remakes"] = dict.fromkeys(sorted(wanted), 1)
            requests = _remakes(store, assets, after["remakes"], turn)
            reason = f"the lists concern {len(partitions)} partitions; see {done[0].run_id[:8]}"
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
