"""An instance in which every partition of every asset counts as materialized without any run."""

from __future__ import annotations

import gzip
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg
from dagster._core.definitions.data_version import CODE_VERSION_TAG, DATA_VERSION_TAG
from dagster._core.events import DagsterEvent, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.instance.utils import RUNLESS_JOB_NAME, RUNLESS_RUN_ID
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from laion_assets.defs.build import AGGREGATES
from laion_assets.defs.partitions import crawls
from laion_assets.layout import SEGMENT_ASSETS, segment_names

SEGMENTS: Final = 100
_AT_ONCE: Final = 500


def crawl_names(count: int) -> list[str]:
    """Names of crawls as Common Crawl has them, oldest first."""
    return [f"CC-MAIN-{2013 + number // 20}-{10 + number % 20}" for number in range(count)]


def write_crawls(root: Path, count: int) -> None:
    """Write what the sensor reads of so many crawls, in Common Crawl's layout."""
    names = crawl_names(count)
    listed = [{"id": name, "name": name} for name in reversed(names)]
    root.mkdir(parents=True)
    (root / "collinfo.json").write_text(json.dumps(listed))
    for name in names:
        paths = [
            f"crawl-data/{name}/segments/{1_400_000_000 + number}.0/wat/0.warc.wat.gz"
            for number in range(SEGMENTS)
        ]
        folder = root / "crawl-data" / name
        folder.mkdir(parents=True)
        (folder / "wat.paths.gz").write_bytes(gzip.compress("\n".join(paths).encode()))


def fill(instance: dg.DagsterInstance, definitions: dg.Definitions, count: int) -> int:
    """Report a materialization for each asset and partition; return their number."""
    graph = definitions.resolve_asset_graph()
    names = crawl_names(count)
    instance.add_dynamic_partitions(crawls.name or "", names)
    n = 0
    for asset in (*SEGMENT_ASSETS, *AGGREGATES):
        key = dg.AssetKey(asset)
        version = graph.get(key).code_version or ""
        partitions: list[str | None] = (
            [None]
            if asset in AGGREGATES
            else [f"{crawl}|{name}" for crawl in names for name in segment_names(SEGMENTS)]
        )
        for start in range(0, len(partitions), _AT_ONCE):
            chunk = partitions[start : start + _AT_ONCE]
            _store(instance, list(_events(key, version, chunk)))
            n += len(chunk)
    return n


def _events(
    key: dg.AssetKey, version: str, partitions: Sequence[str | None]
) -> Iterator[EventLogEntry]:
    for partition in partitions:
        event = dg.AssetMaterialization(
            key,
            partition=partition,
            metadata={
                "counts": dg.MetadataValue.md("| stage | in | kept |\n|---|---|---|\n" * 8),
                "rows": 123_456,
                "bytes": 123_456_789,
                "seconds": 12.5,
                "rate": 9876.5,
            },
            tags={CODE_VERSION_TAG: version, DATA_VERSION_TAG: f"{hash((key, partition)):x}"},
        )
        entry: Any = EventLogEntry  # a record class without types
        yield entry(
            error_info=None,
            user_message="",
            level=logging.INFO,
            run_id=RUNLESS_RUN_ID,
            timestamp=time.time(),
            job_name=RUNLESS_JOB_NAME,
            dagster_event=DagsterEvent(
                event_type_value=dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                job_name=RUNLESS_JOB_NAME,
                event_specific_data=StepMaterializationData(event),
            ),
        )


def _store(instance: dg.DagsterInstance, events: list[EventLogEntry]) -> None:
    """Store events as ``report_runless_asset_event`` would, but many in one transaction."""
    storage: Any = instance.event_log_storage
    if not isinstance(storage, SqliteEventLogStorage):
        storage.store_event_batch(events)
        return
    inner: Any = storage
    with inner.index_transaction() as connection:
        ids = [
            connection.execute(inner.prepare_insert_event(event)).inserted_primary_key[0]
            for event in events
        ]
        inner._store_asset_event_tags(connection, events, ids)
        inner._store_asset_event(connection, events[-1], ids[-1])
