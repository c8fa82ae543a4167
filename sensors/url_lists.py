"""URL lists: each that the settings name becomes a crawl, and each of its ranges of rows gets a
run; again, in the segments that it concerns, when a file of the list was changed or added.

Between changes a tick looks at the files' sizes and times only, every `[discovery] interval_s`
seconds. Files that are not parquet are read once to count their rows.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import dagster as dg
from pydantic import BaseModel, Field, ValidationError

from laion_assets.crawl.source import CrawlSegment
from laion_assets.defs.internals import AssetJob
from laion_assets.defs.partitions import crawls
from laion_assets.lake import Lake
from laion_assets.layout import SEGMENT_ASSETS, SegmentKey, segment_assets
from laion_assets.settings import Discovery
from laion_assets.url_lists.crawl import ListCrawl
from laion_assets.url_lists.files import UrlListError, UrlListUnreachableError
from laion_assets.url_lists.options import UrlListOptions
from resources.lake import LakeResource
from sensors import segment_runs
from sensors.segment_runs import LAST_ASSET, LOOK_S, TICK_S, SegmentRuns, Trouble, again

NAME: Final = "url_list_sensor"
_FIRST_ASSET: Final = SEGMENT_ASSETS[0]


class _Seen(BaseModel):
    """What was read of one list."""

    next_look: float = 0.0
    trouble: Trouble | None = None
    rows: dict[str, int] = Field(default_factory=dict)
    """What a file's rows were counted of and how -> their number."""
    segments: dict[str, str] = Field(default_factory=dict)
    """Number of a segment -> id of what it must be made of."""
    count: int = 0
    """Number of the list's segments."""
    current: dict[str, str] = Field(default_factory=dict)
    """Number of a segment -> id of what it is made of, as its manifest had it last."""

    def look(self, crawl: ListCrawl, policy: Discovery) -> str | None:
        """Read the list if that is due. Returns a message about what must wait, or went wrong."""
        if segment_runs.now() < self.next_look:
            return self.trouble.message if self.trouble else None
        try:
            segments = self._segments(crawl)
        except (UrlListError, UrlListUnreachableError, OSError) as error:
            # A list that cannot be read is not an empty list: nothing follows from it.
            self.trouble = again(self.trouble, f"{crawl.options.crawl}: {error}", policy)
            self.next_look = self.trouble.next_look
            return self.trouble.message
        self.trouble = None
        if segments is None:
            return f"{crawl.options.crawl}: rows are still being counted"
        self.next_look = segment_runs.now() + policy.interval_s
        self.count = len(segments)
        self.segments = {segment.number: segment.segment_id for segment in segments}
        return None

    def _segments(self, crawl: ListCrawl) -> list[CrawlSegment] | None:
        """The list's segments now; None while files are still to be counted."""
        files = crawl.files()
        until = time.monotonic() + LOOK_S
        keys = [f"{crawl.counted_by} {file.version} {file.name}" for file in files]
        for key, file in zip(keys, files, strict=True):
            if key in self.rows:
                continue
            if time.monotonic() > until:
                return None
            self.rows[key] = crawl.count(file)
        self.rows = {key: self.rows[key] for key in keys}
        return crawl.segments(files, [self.rows[key] for key in keys])

    def changed(
        self, crawl: ListCrawl, made: Iterable[SegmentKey], lake: Lake
    ) -> dict[SegmentKey, str]:
        """Segments of ``made`` that are made of other rows than the list has for them now, each
        with the id of what it is to be made of."""
        found = {}
        for key in made:
            wanted = self.segments.get(key.segment) or crawl.beyond(key.segment).segment_id
            if self.current.get(key.segment) == wanted or not lake.has(_FIRST_ASSET, key):
                continue
            manifest = lake.manifest(_FIRST_ASSET, key)
            self.current[key.segment] = str(manifest.metadata["segment_id"])
            if self.current[key.segment] != wanted:
                found[key] = wanted
        return found


class _Known(BaseModel):
    """The cursor: what was read of each list, by name."""

    lists: dict[str, _Seen] = Field(default_factory=dict)

    @classmethod
    def read(cls, cursor: str | None) -> "_Known":
        try:
            return cls.model_validate_json(cursor or "{}")
        except ValidationError:
            # Edited by hand: all that it held can be read again.
            return cls()


def url_list_sensor(
    segment: AssetJob,
    lists: Sequence[UrlListOptions],
    policy: Discovery,
    segments_per_crawl: int,
    subsets: Iterable[str] = (),
    *,
    unchecked: Callable[[], str],
) -> dg.SensorDefinition:
    """``unchecked`` says why nothing may be asked of the lists' hosts yet; empty if it may be."""
    assets = segment_assets(subsets)

    @dg.sensor(
        name=NAME,
        job=segment,
        minimum_interval_seconds=min(TICK_S, policy.interval_s),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=__doc__,
    )
    def url_list_sensor(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult:
        if why := unchecked():
            context.log.warning(why)
            return dg.SensorResult(skip_reason=why)
        instance, store = context.instance, lake.open()
        known, problems = _Known.read(context.cursor), list[str]()
        known.lists = {options.name: known.lists.get(options.name, _Seen()) for options in lists}
        run_requests = SegmentRuns(NAME, instance, policy, assets)
        made = instance.get_materialized_partitions(dg.AssetKey(LAST_ASSET))
        missing: list[SegmentKey] = []
        changed: dict[SegmentKey, str] = {}
        taken = []
        for options in lists:
            seen, crawl = known.lists[options.name], ListCrawl(options)
            if problem := seen.look(crawl, policy):
                problems.append(problem)
                continue
            if seen.count > segments_per_crawl:
                problems.append(
                    f"{options.crawl}: {seen.count} segments, but the deployment has partitions "
                    f"for only {segments_per_crawl}: raise rows_per_segment or segments_per_crawl"
                )
                continue
            taken.append(options.crawl)
            wanted = {SegmentKey(options.crawl, number) for number in seen.segments}
            of_list = {SegmentKey.parse(key) for key in made if key.startswith(f"{options.crawl}|")}
            changed |= seen.changed(crawl, sorted(wanted | of_list), store)
            missing += sorted(wanted - of_list)
        requests = run_requests.choose([*dict.fromkeys([*missing, *changed])], changed)
        problems += run_requests.problems()
        for problem in problems:
            context.log.warning(problem)
        partitions = instance.get_dynamic_partitions(crawls.name or "")
        unseen = sorted(crawl for crawl in taken if crawl not in partitions)
        summary = f"{len(taken)} lists, {len(missing)} segments to build, {len(changed)} changed"
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else "; ".join([summary, *problems]),
            dynamic_partitions_requests=[crawls.build_add_request(unseen)] if unseen else [],
            cursor=known.model_dump_json(exclude_defaults=True),
        )

    return url_list_sensor
