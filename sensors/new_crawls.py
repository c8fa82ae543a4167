"""New crawls: what `collinfo.json` lists becomes partitions, and a run is asked for each segment.

The sensor compares what is wanted with what is made, at each tick: a segment whose run was lost
or failed is asked for again, a bounded number of times, and only for the assets it lacks.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from laion_assets.crawl.source import CrawlSource, CrawlSourceError
from laion_assets.jobs import SEGMENT_ASSETS
from laion_assets.partitions import PARTITION_TAG, UNFINISHED, crawls, partition_key
from laion_assets.segments import SegmentKey, segment_names
from laion_assets.settings import Discovery
from resources.crawl_source import CrawlSourceResource

LAST_ASSET: Final = SEGMENT_ASSETS[-1]


def wanted_crawls(listed: Sequence[str], policy: Discovery) -> list[str]:
    """The listed crawls that the policy takes, oldest first.

    ``listed`` is newest first, as the crawl source gives it.
    """
    allowed = [crawl for crawl in listed if not policy.only or crawl in policy.only]
    return sorted(allowed[: policy.newest])


def wanted_segments(crawl: str, count: int, policy: Discovery) -> list[SegmentKey]:
    """The segments that the policy takes of a crawl that has ``count``."""
    return [SegmentKey(crawl, number) for number in segment_names(count)[: policy.segments]]


def lacking(key: SegmentKey, made: Mapping[str, Collection[str]]) -> list[str]:
    """The assets to make of a segment: the first that is missing, and all after it."""
    partition = str(partition_key(key))
    for place, asset in enumerate(SEGMENT_ASSETS):
        if partition not in made[asset]:
            return list(SEGMENT_ASSETS[place:])
    return []


@dataclass
class _Look:
    """What one tick found."""

    counts: dict[str, int] = field(default_factory=dict)
    """Crawl -> how many segments it has; kept in the cursor, it never changes."""
    problems: list[str] = field(default_factory=list)


def _look(
    source: CrawlSource, wanted: Sequence[str], cursor: str | None, segments_per_crawl: int
) -> _Look:
    known: dict[str, int] = json.loads(cursor) if cursor else {}
    look = _Look()
    for crawl in wanted:
        if crawl in known:
            look.counts[crawl] = known[crawl]
            continue
        try:
            count = len(source.segments(crawl))
        except CrawlSourceError as error:
            look.problems.append(f"{crawl}: {error}")
            continue
        if not 0 < count <= segments_per_crawl:
            look.problems.append(
                f"{crawl}: {count} segments, the deployment has partitions for {segments_per_crawl}"
            )
            continue
        look.counts[crawl] = count
    return look


def _made(instance: dg.DagsterInstance, asset: str) -> set[str]:
    return instance.get_materialized_partitions(dg.AssetKey(asset))


def _run_requests(
    instance: dg.DagsterInstance, missing: Sequence[SegmentKey], policy: Discovery
) -> tuple[list[dg.RunRequest], list[str]]:
    """What to ask for, and the segments given up after too many failures."""
    flying = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    in_flight = {run.tags.get(PARTITION_TAG) for run in flying}
    made = {asset: _made(instance, asset) for asset in SEGMENT_ASSETS}
    requests: list[dg.RunRequest] = []
    given_up: list[str] = []
    for key in missing:
        if len(requests) == policy.at_most:
            break
        if str(key) in in_flight:
            continue
        runs = instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: str(key)}))
        if sum(run.status == dg.DagsterRunStatus.FAILURE for run in runs) >= policy.attempts:
            given_up.append(str(key))
            continue
        requests.append(
            dg.RunRequest(
                run_key=f"{key}#{len(runs)}",
                partition_key=partition_key(key),
                asset_selection=[dg.AssetKey(asset) for asset in lacking(key, made)],
            )
        )
    return requests, given_up


def new_crawl_sensor(
    segment: UnresolvedAssetJobDefinition, policy: Discovery, segments_per_crawl: int
) -> dg.SensorDefinition:
    """The run key counts the runs a segment has had, so that asking twice at once is harmless."""

    @dg.sensor(
        name="new_crawl_sensor",
        job=segment,
        minimum_interval_seconds=policy.interval_s,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=__doc__,
    )
    def new_crawl_sensor(
        context: dg.SensorEvaluationContext, crawl_source: CrawlSourceResource
    ) -> dg.SensorResult | dg.SkipReason:
        source, instance = crawl_source.open(), context.instance
        try:
            listed = [info.name for info in source.crawls()]
        except CrawlSourceError as error:
            # A list that cannot be read is not an empty list: nothing is concluded from it.
            return dg.SkipReason(f"the list of crawls could not be read: {error}")
        look = _look(source, wanted_crawls(listed, policy), context.cursor, segments_per_crawl)
        made = _made(instance, LAST_ASSET)
        missing = [
            key
            for crawl, count in look.counts.items()
            for key in wanted_segments(crawl, count, policy)
            if str(key) not in made
        ]
        requests, given_up = _run_requests(instance, missing, policy) if missing else ([], [])
        if given_up:
            look.problems.append(
                f"given up after {policy.attempts} failed runs: {', '.join(given_up)}"
            )
        for problem in look.problems:
            context.log.warning(problem)
        known = instance.get_dynamic_partitions(crawls.name or "")
        unseen = [crawl for crawl in look.counts if crawl not in known]
        told = f"{len(listed)} crawls listed, {len(look.counts)} taken, {len(missing)} to make"
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else "; ".join([told, *look.problems]),
            dynamic_partitions_requests=[crawls.build_add_request(unseen)] if unseen else [],
            cursor=json.dumps(look.counts, sort_keys=True),
        )

    return new_crawl_sensor
