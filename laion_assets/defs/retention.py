"""Keeping Dagster's storage bounded without forgetting what was made.

Dagster keeps every event of every run for ever, and a run that is deleted takes its
materializations with it: the partitions it made would be missing. So a run's log lines and the
like go early, its printed output too; the run with its steps, and every materialization,
observation and check, stay. Runs that made nothing go as a whole later. Only where
``superseded_days`` is set do materializations go at all: those of runs of which nothing is the
latest of its asset and partition.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
import sqlalchemy as sa
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable as Checks
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable as Events

from laion_assets.settings import Retention

PRUNED_TAGS: Final = {"laion_assets/pruned": "logs"}
"""Of a run whose logs are gone."""
_AT_ONCE: Final = 500
_MADE: Final = tuple(
    kind.value
    for kind in (
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        dg.DagsterEventType.ASSET_OBSERVATION,
        dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    )
)
_CHATTER: Final = tuple(
    kind.value
    for kind in (
        dg.DagsterEventType.ENGINE_EVENT,
        dg.DagsterEventType.HANDLED_OUTPUT,
        dg.DagsterEventType.LOADED_INPUT,
        dg.DagsterEventType.LOGS_CAPTURED,
        dg.DagsterEventType.OBJECT_STORE_OPERATION,
        dg.DagsterEventType.RESOURCE_INIT_FAILURE,
        dg.DagsterEventType.RESOURCE_INIT_STARTED,
        dg.DagsterEventType.RESOURCE_INIT_SUCCESS,
        dg.DagsterEventType.STEP_INPUT,
        dg.DagsterEventType.STEP_OUTPUT,
        dg.DagsterEventType.STEP_WORKER_STARTED,
        dg.DagsterEventType.STEP_WORKER_STARTING,
    )
)
"""With the log lines, which have no type, nearly all of a run's rows."""


class RetentionError(RuntimeError):
    """The instance's storage is none that this knows how to prune."""


@dataclass
class Pruned:
    """How many runs lost what."""

    logs: int = 0
    runs: int = 0
    superseded: int = 0

    def __str__(self) -> str:
        return (
            f"the logs of {self.logs:,} runs, {self.runs:,} runs that made nothing, "
            f"{self.superseded:,} runs whose partitions have been made again"
        )


def prune(instance: dg.DagsterInstance, policy: Retention, *, dry_run: bool = False) -> Pruned:
    """Delete what the policy lets go; with ``dry_run`` only tell what that would be.

    Only finished runs are touched. May be killed and started again at any time. Raises
    :class:`RetentionError`.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise RetentionError(f"{type(storage).__name__} is not stored in SQL")
    gone: set[str] = set()

    def delete(run_ids: Iterable[str]) -> int:
        chosen = set(run_ids) - gone
        gone.update(chosen)
        for run_id in () if dry_run else sorted(chosen):
            instance.compute_log_manager.delete_logs(prefix=[run_id])
            instance.delete_run(run_id)
        return len(chosen)

    pruned = Pruned()
    old = _older(instance, policy.runs_days)
    pruned.runs = delete(old - _made_something(storage, old))
    if policy.superseded_days:
        old = _older(instance, policy.superseded_days) - gone
        pruned.superseded = delete(_made_something(storage, old) - _latest(storage))
    done = set(instance.get_run_ids(dg.RunsFilter(tags=PRUNED_TAGS)))
    chatty = _older(instance, policy.logs_days, touched=True) - done - gone
    pruned.logs = len(chatty)
    for run_id in () if dry_run else sorted(chatty):
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        _thin(storage, run_id)
        instance.add_run_tags(run_id, PRUNED_TAGS)
    return pruned


def _older(instance: dg.DagsterInstance, days: int, *, touched: bool = False) -> set[str]:
    """The finished runs that were asked for before, or ``touched`` last before: a run may have
    waited for long."""
    before = datetime.now(UTC) - timedelta(days=days)
    asked = dg.RunsFilter(
        statuses=FINISHED_STATUSES,
        created_before=None if touched else before,
        updated_before=before if touched else None,
    )
    return set(instance.get_run_ids(asked))


def _made_something(storage: SqlEventLogStorage, run_ids: set[str]) -> set[str]:
    made: set[str] = set()
    with storage.index_connection() as connection:
        for some in _batched(sorted(run_ids)):
            asked = sa.select(Events.c.run_id).where(
                Events.c.run_id.in_(some), Events.c.dagster_event_type.in_(_MADE)
            )
            made.update(row.run_id for row in connection.execute(asked.distinct()))
    return made


def _latest(storage: SqlEventLogStorage) -> set[str]:
    """The runs that hold the latest event of a kind of any asset's partition, or check."""
    newest = (
        sa.select(sa.func.max(Events.c.id))
        .where(Events.c.dagster_event_type.in_(_MADE), Events.c.asset_key.is_not(None))
        .group_by(Events.c.asset_key, Events.c.partition, Events.c.dagster_event_type)
    )
    checked = sa.select(sa.func.max(Checks.c.id)).group_by(
        Checks.c.asset_key, Checks.c.check_name, Checks.c.partition
    )
    with storage.index_connection() as connection:
        events = connection.execute(sa.select(Events.c.run_id).where(Events.c.id.in_(newest)))
        checks = connection.execute(sa.select(Checks.c.run_id).where(Checks.c.id.in_(checked)))
        return {row.run_id for rows in (events, checks) for row in rows}


def _thin(storage: SqlEventLogStorage, run_id: str) -> None:
    chatter = sa.or_(
        Events.c.dagster_event_type.is_(None), Events.c.dagster_event_type.in_(_CHATTER)
    )
    with storage.run_connection(run_id) as connection:
        connection.execute(Events.delete().where(Events.c.run_id == run_id, chatter))
    if isinstance(storage, SqliteEventLogStorage):
        # There each run has a file of its own, which keeps its size without this.
        with closing(sqlite3.connect(storage.path_for_shard(run_id))) as file:
            file.execute("VACUUM")


def _batched(run_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (run_ids[start : start + _AT_ONCE] for start in range(0, len(run_ids), _AT_ONCE))
