"""New crawls: what `collinfo.json` lists, added as partitions, and a run asked for each segment."""

from collections.abc import Collection, Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from laion_assets.crawl.source import CrawlNotReadyError, CrawlSourceError
from laion_assets.partitions import crawls, partition_key
from laion_assets.segments import SegmentKey
from laion_assets.settings import Discovery
from resources.crawl_source import CrawlSourceResource


def wanted_crawls(listed: Sequence[str], policy: Discovery) -> list[str]:
    """The listed crawls that the policy takes, oldest first.

    ``listed`` is newest first, as the crawl source gives it.
    """
    allowed = [crawl for crawl in listed if not policy.only or crawl in policy.only]
    return sorted(allowed[: policy.newest])


def wanted_segments(crawl: str, numbers: Sequence[str], policy: Discovery) -> list[SegmentKey]:
    return [SegmentKey(crawl, number) for number in sorted(numbers)[: policy.segments]]


def new_crawls(wanted: Sequence[str], known: Collection[str]) -> list[str]:
    return [crawl for crawl in wanted if crawl not in known]


def new_crawl_sensor(
    segment: UnresolvedAssetJobDefinition, policy: Discovery
) -> dg.SensorDefinition:
    """A run key per segment makes asking twice harmless."""

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
        source = crawl_source.open()
        try:
            listed = [info.name for info in source.crawls()]
        except CrawlSourceError as error:
            # A list that cannot be read is not an empty list: nothing is concluded from it.
            return dg.SkipReason(f"the list of crawls could not be read: {error}")
        known = set(context.instance.get_dynamic_partitions(crawls.name or ""))
        wanted = wanted_crawls(listed, policy)
        unseen = new_crawls(wanted, known)
        keys: list[SegmentKey] = []
        ready: list[str] = []
        problems: list[str] = []
        for crawl in unseen:
            try:
                numbers = [found.number for found in source.segments(crawl)]
            except (CrawlNotReadyError, CrawlSourceError) as error:
                problems.append(f"{crawl}: {error}")
                continue
            ready.append(crawl)
            keys += wanted_segments(crawl, numbers, policy)
        for problem in problems:
            context.log.warning(problem)
        if not ready:
            waiting = f"; not ready: {'; '.join(problems)}" if problems else ""
            return dg.SkipReason(
                f"{len(listed)} crawls listed, {len(wanted)} wanted, all known{waiting}"
                if not problems
                else f"{len(listed)} crawls listed{waiting}"
            )
        context.log.info(f"new: {', '.join(ready)}, {len(keys)} segments")
        return dg.SensorResult(
            dynamic_partitions_requests=[crawls.build_add_request(ready)],
            run_requests=[
                dg.RunRequest(run_key=str(key), partition_key=partition_key(key)) for key in keys
            ],
        )

    return new_crawl_sensor
