"""What the sample world needs, and bringing it up to date through a running Dagster."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import dagster as dg

from laion_assets.crawl.source import CrawlSource
from laion_assets.defs.build import AGGREGATES
from laion_assets.defs.internals import stale_causes
from laion_assets.defs.jobs import runnable
from laion_assets.defs.partitions import PARTITION_TAG, partition_key
from laion_assets.defs.partitions import crawls as crawl_partitions
from laion_assets.demo.live import Following, View
from laion_assets.demo.services import Dagster, DemoError
from laion_assets.lake import open_lake
from laion_assets.layout import SEGMENT_ASSETS, SegmentKey
from laion_assets.settings import Settings
from laion_assets.url_lists.crawl import ListCrawl
from sensors.new_crawls import wanted_crawls, wanted_segments
from sensors.segment_runs import LAST_ASSET

logger = logging.getLogger(__name__)

_AUTOMATION_PATIENCE_S: Final = 45.0
_SENSOR_PATIENCE_S: Final = 120.0


@dataclass
class Needs:
    """What is missing or stale, and why: asset -> cause, by segment."""

    unknown: list[SegmentKey] = field(default_factory=list)
    """Segments of crawls that the sensor has not discovered yet."""
    missing: dict[SegmentKey, dict[str, str]] = field(default_factory=dict)
    """Segments that were never finished; the sensor launches them."""
    stale: dict[SegmentKey, dict[str, str]] = field(default_factory=dict)
    """Segments that were finished and are not up to date; the sensor leaves them to a person."""
    aggregates: dict[str, str] = field(default_factory=dict)
    """Assets of all segments together; the automation launches them."""
    further: dict[str, str] = field(default_factory=dict)
    """Assets that only the demo launches."""

    def __bool__(self) -> bool:
        segments = self.unknown or self.missing or self.stale
        return bool(segments or self.aggregates or self.further)

    def reasons(self) -> list[str]:
        """Return a line for each new crawl, and for each segment and cause."""
        crawls = sorted({key.crawl for key in self.unknown})
        lines = [f"{crawl}: a new crawl" for crawl in crawls]
        segments = sorted({**self.missing, **self.stale}.items())
        of_all = {**self.aggregates, **self.further}
        for key, assets in [*segments, ("all segments", of_all)]:
            for cause in dict.fromkeys(assets.values()):
                named = ", ".join(asset for asset, why in assets.items() if why == cause)
                lines.append(f"{key}: {named} ({cause})")
        return lines


def needs(
    settings: Settings,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    further: Sequence[str] = (),
) -> Needs:
    """Return what is missing or stale, by Dagster's own staleness and the lake's files.

    ``further``: assets to look at beside those of the segments and the aggregates.
    """
    found = Needs()
    source, lake = CrawlSource(settings.crawl_source), open_lake(settings.lake)
    known = set(instance.get_dynamic_partitions(crawl_partitions.name or ""))
    wanted = wanted_crawls([info.name for info in source.crawls()], settings.discovery)
    finished = instance.get_materialized_partitions(dg.AssetKey(LAST_ASSET))
    causes_of = stale_causes(instance, definitions)

    def why_not(asset: str, key: SegmentKey | None) -> str | None:
        causes = causes_of(asset, key)
        if causes is None:
            return "not materialized"
        if not lake.has(asset, key):
            return "its folder is gone"
        return "; ".join(causes) or None

    keys_of = {
        crawl: wanted_segments(crawl, len(source.segments(crawl)), settings.discovery)
        for crawl in wanted
    }
    for listed in map(ListCrawl, settings.lists):
        crawl = listed.options.crawl
        keys_of[crawl] = [SegmentKey(crawl, segment.number) for segment in listed.present()]
    for crawl, keys in keys_of.items():
        if crawl not in known:
            found.unknown += keys
            continue
        for key in keys:
            reasons = {asset: why_not(asset, key) for asset in SEGMENT_ASSETS}
            lacks = {asset: why for asset, why in reasons.items() if why}
            if lacks:
                (found.stale if str(key) in finished else found.missing)[key] = lacks
    for assets, lacking in ((AGGREGATES, found.aggregates), (further, found.further)):
        reasons = {asset: why_not(asset, None) for asset in assets}
        lacking |= {asset: why for asset, why in reasons.items() if why}
    return found


class Driver:
    """Brings a world up to date through a running Dagster, as a person would in its UI."""

    def __init__(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        definitions: dg.Definitions,
        dagster: Dagster,
        further: Sequence[str] = (),
    ) -> None:
        from dagster_graphql import DagsterGraphQLClient

        address = urlsplit(dagster.url)
        self._client = DagsterGraphQLClient(address.hostname or "", port_number=address.port)
        self._settings, self._instance, self._definitions = settings, instance, definitions
        self._dagster = dagster
        self._further = further
        self._reported: set[str] = set()
        self._following, self._view = Following(instance), View()

    def bring_up_to_date(self, lacks: Needs) -> None:
        """Have Dagster make what is missing or stale, and show how far it is.

        Raises :class:`DemoError` if a run fails, or if something stays missing or stale.
        """
        with self._view.open():
            self._bring_up_to_date(lacks)

    def _bring_up_to_date(self, lacks: Needs) -> None:
        awaited = [*lacks.unknown, *lacks.missing]
        if awaited:
            logger.info(f"waiting for the sensor to launch {len(awaited)} segments")
            self._await_sensor(awaited)
        self._await_runs()
        left = self._needs()
        for _ in SEGMENT_ASSETS:
            # An asset shows as stale only after the stale asset that it is made of was rebuilt.
            if not left.stale:
                break
            for key, assets in sorted(left.stale.items()):
                chosen = runnable(self._definitions, SEGMENT_ASSETS, assets)
                self._launch("segment", chosen, key)
            self._await_runs()
            left = self._needs()
        if left.unknown or left.missing or left.stale:
            raise DemoError("not everything is up to date:\n  " + "\n  ".join(left.reasons()))
        if left.further:
            # Before the aggregates, because the report shows the drawn samples.
            self._launch("generation", list(left.further), None)
            self._await_runs()
            left = self._needs()
        if left.aggregates:
            self._await_automation()
            left = self._needs()
        if left.aggregates:
            self._launch("aggregates", list(left.aggregates), None)
            self._await_runs()

    def _needs(self) -> Needs:
        return needs(self._settings, self._instance, self._definitions, self._further)

    def _launch(self, job: str, assets: Sequence[str], key: SegmentKey | None) -> None:
        tags = (
            {f"dagster/partition/{name}": value for name, value in vars(key).items()} if key else {}
        )
        if key:
            tags[PARTITION_TAG] = str(partition_key(key))
        self._client.submit_job_execution(job, tags=tags, asset_selection=list(assets))
        logger.info(f"launched {', '.join(assets)}{f' of {key}' if key else ''}")

    def _runs(self) -> list[dg.RunRecord]:
        """The runs created since the start of this demo's Dagster."""
        records = self._instance.get_run_records(limit=200)
        since = self._dagster.since
        return [record for record in records if record.create_timestamp.timestamp() >= since]

    def _await_sensor(self, keys: Sequence[SegmentKey]) -> None:
        wanted = {str(key) for key in keys}
        deadline = time.monotonic() + _SENSOR_PATIENCE_S
        while time.monotonic() < deadline:
            self._report_runs()
            if wanted <= {run.dagster_run.tags.get(PARTITION_TAG) for run in self._runs()}:
                return
            time.sleep(0.5)
        raise DemoError(f"the sensor did not launch all segments within {_SENSOR_PATIENCE_S:.0f} s")

    def _await_runs(self) -> None:
        while True:
            self._report_runs()
            if all(record.dagster_run.is_finished for record in self._runs()):
                return
            time.sleep(0.5)

    def _await_automation(self) -> None:
        """Give the automation time to launch the aggregates, which follow the segments."""
        logger.info("waiting for the automation to build the aggregates")
        deadline = time.monotonic() + _AUTOMATION_PATIENCE_S
        while time.monotonic() < deadline:
            self._await_runs()
            if not self._needs().aggregates:
                return
            time.sleep(1.0)

    def _report_runs(self) -> None:
        """Log the runs that ended since the last call, and show those at work.

        Raises :class:`DemoError` if one of them failed.
        """
        self._dagster.check()
        records = self._runs()
        at_work = [record for record in records if not record.dagster_run.is_finished]
        self._view.show(
            self._following.now(
                (run.dagster_run.run_id, _name(run.dagster_run), run.start_time) for run in at_work
            ),
            f"{len(records) - len(at_work)} of {len(records)} runs are done",
        )
        for record in records:
            run = record.dagster_run
            if not run.is_finished or run.run_id in self._reported:
                continue
            self._reported.add(run.run_id)
            what = _name(run)
            seconds = (record.end_time or 0) - (record.start_time or 0)
            logger.info(f"{what}: {run.status.value.lower()} in {seconds:.0f} s")
            if run.status != dg.DagsterRunStatus.SUCCESS:
                raise DemoError(
                    f"the run of {what} did not succeed:\n{self._first_error(run.run_id)}"
                )

    def _first_error(self, run_id: str) -> str:
        for entry in self._instance.all_logs(run_id):
            event = entry.dagster_event
            if event and event.is_step_failure:
                error = event.step_failure_data.error
                return error.to_string()[:3000] if error else str(event.message)
            if event and event.is_run_failure:
                return str(event.message)
        return f"it recorded no error; see run {run_id} in Dagster's UI"


def _name(run: dg.DagsterRun) -> str:
    """What a run makes: its partition, else its assets, else its job."""
    selected = ", ".join(sorted(key.path[-1] for key in run.asset_selection or ()))
    return run.tags.get(PARTITION_TAG) or selected or run.job_name
