"""What this project uses of Dagster's private modules: one adapter for each gap of its public API.

No other module of the project imports ``dagster._core`` or its like. Each docstring says what the
public API lacks. Light to import: what ``import dagster`` has not loaded is imported inside
functions. What does not belong here: anything that ``import dagster as dg`` offers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import dagster as dg
from dagster._core.definitions.data_version import (
    DATA_VERSION_TAG as _DATA_VERSION_TAG,
)
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.errors import DagsterHomeNotSetError
from dagster._core.loader import LoadingContextForTest

from laion_assets.defs.partitions import partition_key
from laion_assets.layout import SegmentKey

if TYPE_CHECKING:
    import sqlalchemy as sa
    from dagster._core.storage.event_log import SqlEventLogStorage

AssetJob: TypeAlias = UnresolvedAssetJobDefinition
"""The type that ``dagster.define_asset_job`` returns; Dagster exports the function only."""

DATA_VERSION_TAG: Final = _DATA_VERSION_TAG
"""The tag that gives an ``AssetObservation`` its data version. Dagster's guide names the tag, but
the package exports neither the constant nor a parameter of the observation."""

_BUSY_S: Final = 30.0
"""How long to wait for whoever reads a SQLite file."""

StaleCauses: TypeAlias = Callable[[str, SegmentKey | None], list[str] | None]


def stale_causes(instance: dg.DagsterInstance, definitions: dg.Definitions) -> StaleCauses:
    """Return a function from an asset and its segment to the causes for which Dagster calls that
    materialization stale.

    The function returns None for what was never materialized and ``[]`` for what is up to date.
    What it reads is cached: take a new function once something was materialized.

    Dagster shows staleness in its UI and in GraphQL, but no public function computes it. The only
    loading context that needs no web server is the one that Dagster's own tests use.
    """
    graph = definitions.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))

    def causes(asset: str, key: SegmentKey | None) -> list[str] | None:
        wanted = dg.AssetKey(asset), str(partition_key(key)) if key else None
        status = resolver.get_status(*wanted)
        if status == StaleStatus.MISSING:
            return None
        if status == StaleStatus.FRESH:
            return []
        return sorted({cause.reason for cause in resolver.get_stale_causes(*wanted)}) or ["stale"]

    return causes


def last_evaluation(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey
) -> dg.AssetCheckEvaluation | None:
    """Return the last evaluation of a check that has ended; None if there is none.

    What the public API returns as the latest is, within a run of the check, the run's own plan.
    """
    for record in instance.event_log_storage.get_asset_check_execution_history(check, limit=20):
        event = record.event.dagster_event if record.event else None
        if event and event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            return event.asset_check_evaluation_data
    return None


def configured_instance() -> dg.DagsterInstance | None:
    """Return the instance in ``DAGSTER_HOME``, or None if that is not set.

    The public base class of the error that Dagster raises then is that of all its errors.
    """
    try:
        instance = dg.DagsterInstance.get()
    except DagsterHomeNotSetError:
        return None
    return None if instance.is_ephemeral else instance


def skip_started_ticks(instance: dg.DagsterInstance, reason: str) -> None:
    """Close the ticks of sensors and schedules that a killed daemon left as started.

    A daemon resumes such a tick in its middle. No public function reads or changes ticks.
    """
    from dagster._core.scheduler.instigation import TickStatus

    for state in instance.all_instigator_state():
        for tick in instance.get_ticks(
            state.instigator_origin_id, state.selector_id, statuses=[TickStatus.STARTED]
        ):
            instance.update_tick(tick.with_status(TickStatus.SKIPPED, skip_reason=reason))


class SqlEventLog:
    """The SQL tables of an instance's event log.

    The public API deletes whole runs, which takes their materializations with them. To delete the
    rest of a run's events only, the tables themselves are needed.
    """

    def __init__(self, storage: SqlEventLogStorage) -> None:
        from dagster._core.storage.event_log import schema

        self._storage = storage
        self.events: Final[sa.Table] = schema.SqlEventLogStorageTable
        """One row for each event and log line."""
        self.checks: Final[sa.Table] = schema.AssetCheckExecutionsTable
        """One row for each evaluation of an asset check."""

    @classmethod
    def of(cls, instance: dg.DagsterInstance) -> SqlEventLog | None:
        """Return None if the instance's event log is not stored in SQL."""
        from dagster._core.storage.event_log import SqlEventLogStorage

        storage = instance.event_log_storage
        return cls(storage) if isinstance(storage, SqlEventLogStorage) else None

    def connect(self) -> AbstractContextManager[sa.Connection]:
        """Connect to the events of all runs that concern assets, and to the checks."""
        return self._storage.index_connection()

    def connect_to_run(self, run_id: str) -> AbstractContextManager[sa.Connection]:
        """Connect to all events of one run."""
        return self._storage.run_connection(run_id)

    def file_of_run(self, run_id: str) -> Path | None:
        """Path of the SQLite file that holds only this run's events; None in other databases."""
        from dagster._core.storage.event_log import SqliteEventLogStorage

        if isinstance(self._storage, SqliteEventLogStorage):
            return Path(self._storage.path_for_shard(run_id))
        return None

    def settle(self, run_ids: Iterable[str]) -> None:
        """Empty SQLite's write-ahead logs of these runs and of all events that concern assets.

        Until then they hold what was deleted. Other databases see to that by themselves.
        """
        import sqlite3

        from dagster._core.storage.event_log import SqliteEventLogStorage
        from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME

        if isinstance(self._storage, SqliteEventLogStorage):
            for shard in (*run_ids, INDEX_SHARD_NAME):
                path = self._storage.path_for_shard(shard)
                with closing(sqlite3.connect(path, timeout=_BUSY_S)) as file:
                    file.execute("pragma wal_checkpoint(truncate)")
