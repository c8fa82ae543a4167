"""What the sample world lacks, and bringing it up to date through a running Dagster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import dagster as dg

from laion_assets.crawl.source import CrawlSource
from laion_assets.demo.world import DemoError, Say
from laion_assets.jobs import AGGREGATES, SEGMENT_ASSETS
from laion_assets.lake import Lake
from laion_assets.partitions import crawls as crawl_partitions
from laion_assets.partitions import partition_key
from laion_assets.segments import SegmentKey
from laion_assets.settings import Settings
from sensors.new_crawls import wanted_crawls, wanted_segments

_AUTOMATION_PATIENCE_S: Final = 45.0
_SENSOR_PATIENCE_S: Final = 120.0


@dataclass
class Needs:
    """What is not there or not current, and why."""

    new_crawls: list[str] = field(default_factory=list)
    segments: dict[SegmentKey, dict[str, str]] = field(default_factory=dict)
    aggregates: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.new_crawls or self.segments or self.aggregates)

    def reasons(self) -> list[str]:
        """A line for each crawl, and for each segment and cause."""
        lines = [f"{crawl}: a new crawl" for crawl in self.new_crawls]
        for key, assets in [*sorted(self.segments.items()), ("all segments", self.aggregates)]:
            for cause in dict.fromkeys(assets.values()):
                named = ", ".join(asset for asset, why in assets.items() if why == cause)
                lines.append(f"{key}: {named} ({cause})")
        return lines


def needs(settings: Settings, instance: dg.DagsterInstance, definitions: dg.Definitions) -> Needs:
    """What the sample world lacks, by Dagster's own staleness and the lake's files."""
    from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
    from dagster._core.loader import LoadingContextForTest

    found = Needs()
    source, lake = CrawlSource(settings.crawl_source), Lake(settings.lake)
    known = set(instance.get_dynamic_partitions(crawl_partitions.name or ""))
    wanted = wanted_crawls([info.name for info in source.crawls()], settings.discovery)
    found.new_crawls = [crawl for crawl in wanted if crawl not in known]
    resolver = CachingStaleStatusResolver(
        instance, definitions.resolve_asset_graph(), LoadingContextForTest(instance)
    )

    def why_not(asset: str, key: SegmentKey | None) -> str | None:
        partition = str(partition_key(key)) if key else None
        status = resolver.get_status(dg.AssetKey(asset), partition)
        if status == StaleStatus.MISSING or not (lake.folder(asset, key)).exists():
            return "not materialized"
        if status == StaleStatus.STALE:
            causes = resolver.get_stale_causes(dg.AssetKey(asset), partition)
            return "; ".join(sorted({cause.reason for cause in causes})) or "stale"
        return None

    for crawl in wanted:
        if crawl not in known:
            continue
        numbers = [segment.number for segment in source.segments(crawl)]
        for key in wanted_segments(crawl, numbers, settings.discovery):
            reasons = {asset: why_not(asset, key) for asset in SEGMENT_ASSETS}
            missing = {asset: why for asset, why in reasons.items() if why}
            if missing:
                found.segments[key] = missing
    reasons = {asset: why_not(asset, None) for asset in AGGREGATES}
    found.aggregates = {asset: why for asset, why in reasons.items() if why}
    return found


class Driver:
    """Brings the sample world up to date through a running Dagster."""

    def __init__(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        definitions: dg.Definitions,
        ui: str,
        since: float,
        say: Say,
    ) -> None:
        """``since``: runs created from then on are this demo's; the daemon may be quick."""
        from dagster_graphql import DagsterGraphQLClient

        address = urlsplit(ui)
        self._client = DagsterGraphQLClient(address.hostname or "", port_number=address.port)
        self._settings, self._instance, self._definitions = settings, instance, definitions
        self._say = say
        self._told: set[str] = set()
        self._since = since

    def bring_up_to_date(self, missing: Needs) -> None:
        """Raises :class:`DemoError` when a run fails."""
        for key, assets in sorted(missing.segments.items()):
            # In the order of the segments: which of two segments keeps a pair that both have
            # depends on which claims it first.
            self._launch("segment", list(assets), key)
        if missing.new_crawls:
            self._say("waiting for the sensor to discover " + ", ".join(missing.new_crawls))
            self._await_sensor(missing.new_crawls)
        self._await_runs()
        left = needs(self._settings, self._instance, self._definitions)
        if left.segments or left.new_crawls:
            raise DemoError("not everything was made:\n  " + "\n  ".join(left.reasons()))
        if left.aggregates:
            self._await_automation()
        left = needs(self._settings, self._instance, self._definitions)
        if left.aggregates:
            self._launch("aggregates", list(left.aggregates), None)
            self._await_runs()

    def _launch(self, job: str, assets: Sequence[str], key: SegmentKey | None) -> None:
        tags = (
            {f"dagster/partition/{name}": value for name, value in vars(key).items()} if key else {}
        )
        if key:
            tags["dagster/partition"] = str(partition_key(key))
        self._client.submit_job_execution(job, tags=tags, asset_selection=list(assets))
        self._say(f"asked for {key or 'the aggregates'}: {', '.join(assets)}")

    def _runs(self) -> list[dg.RunRecord]:
        records = self._instance.get_run_records(limit=200)
        return [record for record in records if record.create_timestamp.timestamp() >= self._since]

    def _await_sensor(self, crawls: Sequence[str]) -> None:
        wanted = {
            str(key)
            for crawl in crawls
            for key in wanted_segments(
                crawl,
                [
                    found.number
                    for found in CrawlSource(self._settings.crawl_source).segments(crawl)
                ],
                self._settings.discovery,
            )
        }
        deadline = time.monotonic() + _SENSOR_PATIENCE_S
        while time.monotonic() < deadline:
            self._tell_runs()
            asked = {record.dagster_run.tags.get("dagster/partition") for record in self._runs()}
            if wanted <= asked:
                return
            time.sleep(0.5)
        raise DemoError(f"the sensor asked for nothing in {_SENSOR_PATIENCE_S:.0f} s")

    def _await_runs(self) -> None:
        while True:
            self._tell_runs()
            if all(record.dagster_run.is_finished for record in self._runs()):
                return
            time.sleep(0.5)

    def _await_automation(self) -> None:
        """The aggregates follow by themselves; give the automation its ticks."""
        self._say("waiting for the automation to make the aggregates")
        deadline = time.monotonic() + _AUTOMATION_PATIENCE_S
        while time.monotonic() < deadline:
            self._await_runs()
            if not needs(self._settings, self._instance, self._definitions).aggregates:
                return
            time.sleep(1.0)

    def _tell_runs(self) -> None:
        for record in self._runs():
            run = record.dagster_run
            if not run.is_finished or run.run_id in self._told:
                continue
            self._told.add(run.run_id)
            selected = ", ".join(sorted(key.path[-1] for key in run.asset_selection or ()))
            what = run.tags.get("dagster/partition") or selected or run.job_name
            seconds = (record.end_time or 0) - (record.start_time or 0)
            self._say(f"{what}: {run.status.value.lower()} in {seconds:.0f} s")
            if run.status != dg.DagsterRunStatus.SUCCESS:
                raise DemoError(
                    f"the run for {what} did not succeed:\n{self._first_error(run.run_id)}"
                )

    def _first_error(self, run_id: str) -> str:
        for entry in self._instance.all_logs(run_id):
            event = entry.dagster_event
            if event and event.is_step_failure:
                error = event.step_failure_data.error
                return error.to_string()[:3000] if error else str(event.message)
            if event and event.is_run_failure:
                return str(event.message)
        return f"no error was recorded; see run {run_id} in the UI"
