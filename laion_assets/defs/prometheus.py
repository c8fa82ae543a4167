"""Counts, bytes and seconds of the stages as Prometheus metrics, read from the metadata of each
materialization.

Counters begin at 0 when the exporter starts, as usual for a service: what was materialized earlier
shows in the gauges only, or a restart would count it twice. Rates are queries:
``rate(laion_assets_rows_total{outcome="in"}[1h])`` is the throughput of the deployment, and
``increase(rows) / increase(seconds)`` that of one busy worker.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import dagster as dg
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_client import write_to_textfile as write_textfile

from laion_assets.defs.metadata import IN, IN_PER_SECOND, KEPT, REJECTS, split_stage_name
from laion_assets.defs.partitions import UNFINISHED

_PAGE: Final = 500
_PREFIX: Final = "laion_assets"


class StageMetrics:
    """Metrics of an instance's materializations; :meth:`update` may be called from any thread."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._seen: dict[dg.AssetKey, int] = {}
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        self._made = self._counter("materializations", "Partitions made", "asset")
        self._seconds = self._counter("seconds", "Time spent making partitions", "asset")
        self._bytes = self._counter("bytes", "Bytes published", "asset")
        self._received = self._counter("received_bytes", "Bytes downloaded", "asset")
        self._rows = self._counter(
            "rows",
            "Rows of a stage: in, kept, or refused for a reason",
            "asset",
            "stage",
            "outcome",
        )
        self._last = self._gauge(
            "last_made_timestamp_seconds", "When a partition was last made", "asset"
        )
        self._last_seconds = self._gauge(
            "last_seconds", "Time spent making the last partition", "asset"
        )
        self._last_rate = self._gauge(
            "last_rows_per_second", "Rows per second of the last partition", "asset", "stage"
        )
        self._partitions = self._gauge("partitions", "Segments that are materialized", "asset")
        self._runs = self._gauge("runs", "Runs that are not finished", "status")
        self._slots = self._gauge("pool_slots", "A pool's slots", "pool", "state")
        for asset in instance.get_asset_keys():
            self._begin(asset)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", help_text, labels, registry=self.registry)

    def update(self) -> None:
        """Count what was materialized since the last call, and set the gauges."""
        with self._lock:
            for asset in self._instance.get_asset_keys():
                new = False
                for event in self._new(asset):
                    new = True
                    self._count(asset.path[-1], event)
                if new:
                    self._count_partitions(asset)
            for status in UNFINISHED:
                n = self._instance.get_runs_count(dg.RunsFilter(statuses=[status]))
                self._runs.labels(status.value.lower()).set(n)
            storage = self._instance.event_log_storage
            for pool in storage.get_concurrency_keys():
                info = storage.get_concurrency_info(pool)
                self._slots.labels(pool, "limit").set(info.slot_count)
                self._slots.labels(pool, "taken").set(info.active_slot_count)
                self._slots.labels(pool, "waited_for").set(info.pending_step_count)

    def _begin(self, asset: dg.AssetKey) -> None:
        """Remember the newest materialization; set the gauges by it and count nothing."""
        for record in self._instance.fetch_materializations(asset, limit=1).records:
            self._seen[asset] = record.storage_id
            self._count(asset.path[-1], record, times=0)
        self._count_partitions(asset)

    def _count_partitions(self, asset: dg.AssetKey) -> None:
        made = self._instance.get_materialized_partitions(asset)
        self._partitions.labels(asset.path[-1]).set(len(made))

    def _new(self, asset: dg.AssetKey) -> Iterator[dg.EventLogRecord]:
        while True:
            # An asset that did not exist at the start is counted from its first materialization.
            wanted = dg.AssetRecordsFilter(asset, after_storage_id=self._seen.get(asset, 0))
            page = self._instance.fetch_materializations(wanted, limit=_PAGE, ascending=True)
            for record in page.records:
                self._seen[asset] = record.storage_id
                yield record
            if len(page.records) < _PAGE:
                return

    def _count(self, asset: str, record: dg.EventLogRecord, times: int = 1) -> None:
        """Set the gauges to the record's values; add these to the counters, ``times`` times."""
        made = record.asset_materialization
        values: Mapping[str, Any] = (
            {name: value.value for name, value in made.metadata.items()} if made else {}
        )
        seconds = float(values.get("seconds", 0.0))
        self._made.labels(asset).inc(times)
        self._seconds.labels(asset).inc(times * seconds)
        self._bytes.labels(asset).inc(times * int(values.get("bytes", 0)))
        self._received.labels(asset).inc(times * int(values.get("bytes_received", 0)))
        self._last.labels(asset).set(record.timestamp)
        self._last_seconds.labels(asset).set(seconds)
        for name, value in values.items():
            stage, what = split_stage_name(name)
            if what in (IN, KEPT):
                self._rows.labels(asset, stage, what).inc(times * int(value))
            elif what == IN_PER_SECOND:
                self._last_rate.labels(asset, stage).set(float(value))
            elif what == REJECTS:
                for row in value.records:
                    refused = self._rows.labels(asset, stage, str(row.data["reason"]))
                    refused.inc(times * int(row.data["n"]))


def export(
    instance: dg.DagsterInstance,
    *,
    port: int,
    host: str = "127.0.0.1",
    textfile: Path | None = None,
    every_s: float = 60.0,
) -> None:
    """Serve the metrics at ``/metrics`` until interrupted. With ``textfile``, write them to that
    file every ``every_s`` seconds instead, for node_exporter's textfile collector."""
    metrics = StageMetrics(instance)
    if textfile is None:
        start_http_server(port, addr=host, registry=metrics.registry)
        print(f"http://{host}:{port}/metrics", flush=True)
    while True:
        metrics.update()
        if textfile is not None:
            write_textfile(str(textfile), metrics.registry)
        time.sleep(every_s)
