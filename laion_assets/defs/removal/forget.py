"""Deletes what Dagster's event log still shows of samples that were taken out.

A materialization records a preview of its rows, examples of rejects and small pictures. The newest
one of a partition that samples left is of what remains; those before it may show what is gone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import dagster as dg
import sqlalchemy as sa

from laion_assets.defs.internals import SqlEventLog
from laion_assets.defs.partitions import partition_key
from laion_assets.layout import SegmentKey

_AT_ONCE: Final = 500
"""Events in one SQL statement."""
_MATERIALIZED: Final = dg.DagsterEventType.ASSET_MATERIALIZATION.value
_SHOWING: Final = (_MATERIALIZED, dg.DagsterEventType.STEP_OUTPUT.value)
"""Events of a step that may hold what its materialization shows."""


def forget_superseded(instance: dg.DagsterInstance, keys: Collection[SegmentKey]) -> int:
    """Delete the materializations of these segments, and of what is over all segments, that newer
    ones have replaced; return how many there were.

    The runs, their other events and every latest materialization stay. An event log that is not
    stored in SQL is left as it is. Calling it again does no harm.
    """
    log = SqlEventLog.of(instance)
    if log is None:
        return 0
    columns = log.events.c
    wanted = {str(partition_key(key)) for key in keys} | {None}
    groups = (
        sa.select(columns.asset_key, columns.partition, sa.func.max(columns.id).label("newest"))
        .where(columns.dagster_event_type == _MATERIALIZED, columns.asset_key.is_not(None))
        .group_by(columns.asset_key, columns.partition)
        .having(sa.func.count() > 1)
    )
    found: list[sa.Row[tuple[int, str, str]]] = []
    with log.connect() as connection:
        for group in connection.execute(groups).all():
            if group.partition in wanted:
                older = sa.select(columns.id, columns.run_id, columns.step_key).where(
                    columns.asset_key == group.asset_key,
                    columns.partition.is_not_distinct_from(group.partition),
                    columns.dagster_event_type == _MATERIALIZED,
                    columns.id < group.newest,
                )
                found += connection.execute(older).all()
    for event in found:
        with log.connect_to_run(event.run_id) as connection:
            _overwrite(connection)
            of_step = sa.and_(columns.run_id == event.run_id, columns.step_key == event.step_key)
            of_kind = columns.dagster_event_type.in_(_SHOWING)
            connection.execute(log.events.delete().where(of_step, of_kind))
    # Last: by these rows a killed call's successor finds the others.
    for start in range(0, len(found), _AT_ONCE):
        with log.connect() as connection:
            _overwrite(connection)
            ids = [event.id for event in found[start : start + _AT_ONCE]]
            connection.execute(log.events.delete().where(columns.id.in_(ids)))
    if found:
        log.settle({event.run_id for event in found})
    return len(found)


def _overwrite(connection: sa.Connection) -> None:
    """Have SQLite overwrite what is deleted, which it otherwise only no longer names."""
    if connection.dialect.name == "sqlite":
        connection.execute(sa.text("pragma secure_delete = on"))
