"""Sends one notice of each failed run to each notifier.

A tag on the run records that its notice was sent: whatever happens to this sensor's cursor, nobody
gets a notice twice. A notifier that is down holds up neither the others nor the sensor: its notices
wait, and it is retried at growing intervals for a week.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import dagster as dg
from pydantic import BaseModel, Field, ValidationError

from laion_assets.defs.partitions import INTERRUPTED_TAG, PARTITION_TAG
from laion_assets.settings import Notify
from resources.notifier import Notice, NoticeError, Notifier

NOTIFIED_TAG: Final = "laion_assets/notified/"
"""With the notifier's name appended, a tag of a run: when its notice was sent."""
_WILL_RETRY: Final = "dagster/will_retry"
_OVERLAP_S: Final = 120.0
"""Allowed difference between the clocks of other machines and this one, in seconds. A run that is
seen twice by it is known by its tag."""
_BEFORE_S: Final = 86_400.0
"""How far before its first tick, or its last, the sensor looks for failed runs, in seconds."""
_TICK_S: Final = 20.0
"""Seconds of one tick, in equal shares for all notifiers; Dagster ends a tick after 60 s."""
_BACK_OFF_S: Final = 60.0
_LONGEST_BACK_OFF_S: Final = 3600.0
_GIVE_UP_S: Final = 7 * 86_400.0
_ERROR_CHARS: Final = 1000


def resource_of(name: str) -> str:
    """Return the resource key of a notifier."""
    return f"notify_{name}"


def now() -> float:
    return time.time()


class _Down(BaseModel):
    """A notifier that does not take notices."""

    times: int = 0
    """Failed tries in a row."""
    until: float = 0.0
    """When to try again, in seconds since the epoch."""
    why: str = ""


class _State(BaseModel):
    """The cursor."""

    first: float
    """No notice is sent of runs that failed before this time."""
    since: float
    """When the last tick began."""
    waiting: list[str] = Field(default_factory=list)
    """Ids of runs whose notice some notifier lacks; the run tried longest ago comes first."""
    down: dict[str, _Down] = Field(default_factory=dict)
    """By the notifier's name."""

    @classmethod
    def read(cls, cursor: str | None) -> _State:
        try:
            return cls.model_validate_json(cursor or "")
        except ValidationError:
            # New or reset: tags tell which notices were sent, and waiting runs are found again.
            return cls(first=now() - _BEFORE_S, since=now() - _BEFORE_S)


def _failed(instance: dg.DagsterInstance, state: _State) -> Iterator[dg.RunRecord]:
    """Yield the runs that wait for a notice and those that failed lately. Some may be done."""
    waiting = {
        record.dagster_run.run_id: record
        for record in (
            instance.get_run_records(dg.RunsFilter(run_ids=state.waiting)) if state.waiting else ()
        )
    }
    yield from (waiting[run_id] for run_id in state.waiting if run_id in waiting)
    # Tagging a run updates it, too: retention does so a month after the run failed.
    ended_after = max(state.first, state.since - _BEFORE_S)
    after = datetime.fromtimestamp(max(state.first, state.since - _OVERLAP_S), UTC)
    for record in instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=after),
        order_by="update_timestamp",
        ascending=True,
    ):
        old = record.end_time is not None and record.end_time < ended_after
        run = record.dagster_run
        if run.run_id not in waiting and not old and INTERRUPTED_TAG not in run.tags:
            yield record


def notice_of(instance: dg.DagsterInstance, record: dg.RunRecord, ui: str) -> Notice:
    """Return the notice of a failed run, with its root error; ``ui`` is the address of the UI."""
    run = record.dagster_run
    step, message = None, ""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    for entry in instance.all_logs(run.run_id, of_type=kinds):
        event = entry.dagster_event
        if event is None:
            continue
        error = event.step_failure_data.error if event.is_step_failure else None
        while error and error.cause:
            error = error.cause
        step = step or event.step_key
        message = error.message if error else (event.message or "")
        if event.is_step_failure:
            break
    ended = datetime.fromtimestamp(record.end_time or now(), UTC)
    return Notice(
        run_id=run.run_id,
        job=run.job_name,
        partition=run.tags.get(PARTITION_TAG),
        step=step,
        error=message.strip()[:_ERROR_CHARS] or "no error was recorded",
        failed_at=ended.isoformat(timespec="seconds"),
        retried=_is_retried(run),
        link=f"{ui.rstrip('/')}/runs/{run.run_id}",
    )


def _is_retried(run: dg.DagsterRun) -> bool:
    return run.tags.get(_WILL_RETRY) == "true"


class _NotificationRound:
    """Sends the notices of one tick. Each notifier has its share of the tick's time."""

    def __init__(
        self, context: dg.SensorEvaluationContext, notifiers: Mapping[str, Notifier], state: _State
    ) -> None:
        self._context, self._notifiers, self._state = context, notifiers, state
        self._left = dict.fromkeys(notifiers, _TICK_S / max(len(notifiers), 1))
        self.sent = 0

    def lacking(self, run: dg.DagsterRun) -> list[str]:
        """Return the names of the notifiers that still need a notice of the run."""
        return [name for name in self._notifiers if NOTIFIED_TAG + name not in run.tags]

    def notify(self, record: dg.RunRecord, ui: str) -> bool:
        """Send the run's notice where it is lacking; return True if none is lacking any more."""
        done, notice = True, None
        for name in self.lacking(record.dagster_run):
            down = self._state.down.get(name)
            if self._left[name] <= 0 or (down and now() < down.until):
                done = False
                continue
            notice = notice or notice_of(self._context.instance, record, ui)
            if self._send(name, notice):
                self._mark(notice, name, datetime.now(UTC).isoformat(timespec="seconds"))
                self.sent += 1
            elif now() - (record.end_time or now()) > _GIVE_UP_S:
                self._context.log.error(f"gave up sending this notice to {name}: {notice.text}")
                self._mark(notice, name, "given up")
            else:
                done = False
        return done

    def _send(self, name: str, notice: Notice) -> bool:
        began = time.monotonic()
        try:
            self._notifiers[name].tell(notice)
        except Exception as error:  # noqa: BLE001 - whatever a notifier raises is logged
            before = self._state.down.get(name, _Down())
            wait = min(_BACK_OFF_S * 2.0 ** min(before.times, 16), _LONGEST_BACK_OFF_S)
            # The message of any other error may hold the notifier's secrets.
            detail = f": {error}" if isinstance(error, NoticeError) else ""
            why = type(error).__name__ + detail
            self._state.down[name] = _Down(times=before.times + 1, until=now() + wait, why=why)
            self._context.log.warning(f"{name} did not take the notice of {notice.run_id}: {why}")
            return False
        finally:
            self._left[name] -= time.monotonic() - began
        self._state.down.pop(name, None)
        return True

    def _mark(self, notice: Notice, name: str, when: str) -> None:
        self._context.instance.add_run_tags(notice.run_id, {NOTIFIED_TAG + name: when})


def failure_sensor(options: Notify, names: Sequence[str]) -> dg.SensorDefinition:
    """Build the sensor for the notifiers ``names``."""

    @dg.sensor(
        name="failure_sensor",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={resource_of(name) for name in names},
        description=__doc__,
    )
    def failure_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        started = now()
        state = _State.read(context.cursor)
        notifiers = {name: getattr(context.resources, resource_of(name)) for name in names}
        notices = _NotificationRound(context, notifiers, state)
        waiting = []
        for record in list(_failed(context.instance, state)):
            run = record.dagster_run
            if not notices.lacking(run) or (_is_retried(run) and not options.retried):
                continue
            if not notices.notify(record, options.ui):
                waiting.append(run.run_id)
        # The first goes last: one notice that a notifier refuses must not hold up the others.
        state.waiting = [*waiting[1:], *waiting[:1]]
        state.since = started
        summary = f"{notices.sent} notices sent, {len(waiting)} runs waiting for one"
        down = [f"{name} is down: {down.why}" for name, down in state.down.items()]
        return dg.SensorResult(
            skip_reason="; ".join([summary, *down]),
            cursor=state.model_dump_json(),
        )

    return failure_sensor
