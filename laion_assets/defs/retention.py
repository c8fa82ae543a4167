"""Keeps Dagster's storage bounded without forgetting which partitions were made.

Dagster keeps every event of every run forever, and deleting a run deletes its materializations:
the partitions that it made would count as missing. So three things are deleted at three ages:

- After ``logs_days``, a run's log lines, minor events and printed output. The run, its steps, and
  every materialization, observation and check evaluation stay.
- After ``runs_days``, runs that recorded no result, as a whole.
- After ``superseded_days``, where that is set, runs that hold no latest result of any asset and
  partition. Nothing else deletes a materialization.
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

from laion_assets.defs.internals import SqlEventLog
from laion_assets.defs.partitions import FINISHED
from laion_assets.settings import Retention

PRUNED_TAGS: Final = {"laion_assets/pruned": "logs"}
"""Tags of a run whose logs have been deleted."""
_AT_ONCE: Final = 500
"""Runs in one SQL statement."""
_RESULTS: Final = tuple(
    kind.value
    for kind in (
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        dg.DagsterEventType.ASSET_OBSERVATION,
        dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    )
)
_MINOR: Final = tuple(
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
"""Events that nothing reads later. With the log lines, which have no type, they are nearly all rows
of a run."""


class RetentionError(RuntimeError):
    """The instance keeps its events in a storage that cannot be pruned here."""


@dataclass
class Pruned:
    """Numbers of runs, by what was deleted of them."""

    logs: int = 0
    runs: int = 0
    """Runs without a result, deleted as a whole."""
    superseded: int = 0
    """Runs without a latest result, deleted as a whole."""

    def __str__(self) -> str:
        return (
            f"the logs of {self.logs:,} runs, {self.runs:,} runs that made nothing, "
            f"{self.superseded:,} runs whose partitions have been rebuilt since"
        )


def prune(instance: dg.DagsterInstance, policy: Retention, *, dry_run: bool = False) -> Pruned:
    """Delete what the policy no longer keeps; with ``dry_run`` only count it.

    Only finished runs are touched. A killed call leaves nothing broken: the next one continues.
    Raises :class:`RetentionError`.
    """
    log = SqlEventLog.of(instance)
    if log is None:
        storage = type(instance.event_log_storage).__name__
        raise RetentionError(f"{storage} cannot be pruned: its events are not in an SQL database")
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
    pruned.runs = delete(old - _with_results(log, old))
    if policy.superseded_days:
        old = _older(instance, policy.superseded_days) - gone
        pruned.superseded = delete(_with_results(log, old) - _with_latest_result(log))
    done = set(instance.get_run_ids(dg.RunsFilter(tags=PRUNED_TAGS)))
    unpruned = _older(instance, policy.logs_days, by_update=True) - done - gone
    pruned.logs = len(unpruned)
    for run_id in () if dry_run else sorted(unpruned):
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        _delete_minor_events(log, run_id)
        instance.add_run_tags(run_id, PRUNED_TAGS)
    return pruned


def _older(instance: dg.DagsterInstance, days: int, *, by_update: bool = False) -> set[str]:
    """Return the ids of finished runs that were created, or with ``by_update`` last updated, more
    than ``days`` ago. The two may lie far apart: a run can wait in the queue for long."""
    before = datetime.now(UTC) - timedelta(days=days)
    wanted = dg.RunsFilter(
        statuses=FINISHED,
        created_before=None if by_update else before,
        updated_before=before if by_update else None,
    )
    return set(instance.get_run_ids(wanted))


def _with_results(log: SqlEventLog, run_ids: set[str]) -> set[str]:
    """Return those runs that recorded a materialization, an observation or a check."""
    columns, found = log.events.c, set[str]()
    with log.connect() as connection:
        for some in _batched(sorted(run_ids)):
            query = sa.select(columns.run_id).where(
                columns.run_id.in_(some), columns.dagster_event_type.in_(_RESULTS)
            )
            found.update(row.run_id for row in connection.execute(query.distinct()))
    return found


def _with_latest_result(log: SqlEventLog) -> set[str]:
    """Return the runs that hold the latest event of a kind for some partition of an asset, or the
    latest evaluation of a check."""
    events, checks = log.events.c, log.checks.c
    newest_events = (
        sa.select(sa.func.max(events.id))
        .where(events.dagster_event_type.in_(_RESULTS), events.asset_key.is_not(None))
        .group_by(events.asset_key, events.partition, events.dagster_event_type)
    )
    newest_checks = sa.select(sa.func.max(checks.id)).group_by(
        checks.asset_key, checks.check_name, checks.partition
    )
    queries = (
        sa.select(events.run_id).where(events.id.in_(newest_events)),
        sa.select(checks.run_id).where(checks.id.in_(newest_checks)),
    )
    with log.connect() as connection:
        return {row.run_id for query in queries for row in connection.execute(query)}


def _delete_minor_events(log: SqlEventLog, run_id: str) -> None:
    columns = log.events.c
    minor = sa.or_(columns.dagster_event_type.is_(None), columns.dagster_event_type.in_(_MINOR))
    with log.connect_to_run(run_id) as connection:
        connection.execute(log.events.delete().where(columns.run_id == run_id, minor))
    path = log.file_of_run(run_id)
    if path is not None:
        # Without this, SQLite keeps the file at its old size.
        with closing(sqlite3.connect(path)) as file:
            file.execute("VACUUM")


def _batched(run_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (run_ids[start : start + _AT_ONCE] for start in range(0, len(run_ids), _AT_ONCE))
