"""Each failed run is told once to each notifier; what cannot be told now is told later.

That a run was told is a tag on the run: whatever becomes of this sensor's cursor, nobody is told
twice. A notifier that is down stops no other and not the sensor: its notices wait, and it is tried
again, later and later, for a week.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import dagster as dg
from pydantic import BaseModel, Field, ValidationError

from laion_assets.defs.partitions import PARTITION_TAG
from laion_assets.settings import Notify
from resources.notifier import Notice, NoticeError, Notifier

TOLD_TAG: Final = "laion_assets/told/"
"""With the notifier's name: when the run was told to it."""
_WILL_RETRY: Final = "dagster/will_retry"
_OVERLAP_S: Final = 120.0
"""Between the clocks of the machines that run and this one; told runs are known by their tag."""
_BEFORE_S: Final = 86_400.0
"""Before the sensor's first tick, or its last, for which failed runs are told."""
_TICK_S: Final = 20.0
"""In one tick, in equal shares for all notifiers: Dagster ends a tick at 60 s."""
_BACK_OFF_S: Final = 60.0
_LONGEST_BACK_OFF_S: Final = 3600.0
_GIVE_UP_S: Final = 7 * 86_400.0
_ERROR_CHARS: Final = 1000


def resource_of(name: str) -> str:
    """The resource key of a notifier."""
    return f"notify_{name}"


def now() -> float:
    return time.time()


class _Down(BaseModel):
    times: int = 0
    until: float = 0.0
    why: str = ""


class _State(BaseModel):
    """The cursor."""

    first: float
    """Runs that failed before are nobody's news."""
    since: float
    waiting: list[str] = Field(default_factory=list)
    """Runs that are still to be told, those that were tried longest ago first."""
    down: dict[str, _Down] = Field(default_factory=dict)

    @classmethod
    def read(cls, cursor: str | None) -> _State:
        try:
            return cls.model_validate_json(cursor or "")
        except ValidationError:
            # New, or reset: what was told is known by its tag, and what was waiting is found again.
            return cls(first=now() - _BEFORE_S, since=now() - _BEFORE_S)


def _failed(instance: dg.DagsterInstance, state: _State) -> Iterator[dg.RunRecord]:
    """Runs to tell, or told already: those that waited, and those that failed lately."""
    waiting = {
        record.dagster_run.run_id: record
        for record in (
            instance.get_run_records(dg.RunsFilter(run_ids=state.waiting)) if state.waiting else ()
        )
    }
    yield from (waiting[run_id] for run_id in state.waiting if run_id in waiting)
    # A run is touched by whoever tags it, too: by retention, a month after it failed.
    ended_after = max(state.first, state.since - _BEFORE_S)
    after = datetime.fromtimestamp(max(state.first, state.since - _OVERLAP_S), UTC)
    for record in instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=after),
        order_by="update_timestamp",
        ascending=True,
    ):
        old = record.end_time is not None and record.end_time < ended_after
        if record.dagster_run.run_id not in waiting and not old:
            yield record


def notice_of(instance: dg.DagsterInstance, record: dg.RunRecord, ui: str) -> Notice:
    run = record.dagster_run
    step, told = None, ""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    for entry in instance.all_logs(run.run_id, of_type=kinds):
        event = entry.dagster_event
        if event is None:
            continue
        error = event.step_failure_data.error if event.is_step_failure else None
        while error and error.cause:
            error = error.cause
        step = step or event.step_key
        told = error.message if error else (event.message or "")
        if event.is_step_failure:
            break
    ended = datetime.fromtimestamp(record.end_time or now(), UTC)
    return Notice(
        run_id=run.run_id,
        job=run.job_name,
        partition=run.tags.get(PARTITION_TAG),
        step=step,
        error=told.strip()[:_ERROR_CHARS] or "no error was recorded",
        failed_at=ended.isoformat(timespec="seconds"),
        retried=_is_retried(run),
        link=f"{ui.rstrip('/')}/runs/{run.run_id}",
    )


def _is_retried(run: dg.DagsterRun) -> bool:
    return run.tags.get(_WILL_RETRY) == "true"


class _Teller:
    """Tells runs within a tick's time, of which no notifier takes another's share."""

    def __init__(
        self, context: dg.SensorEvaluationContext, notifiers: Mapping[str, Notifier], state: _State
    ) -> None:
        self._context, self._notifiers, self._state = context, notifiers, state
        self._left = dict.fromkeys(notifiers, _TICK_S / max(len(notifiers), 1))
        self.told = 0

    def untold(self, run: dg.DagsterRun) -> list[str]:
        return [name for name in self._notifiers if TOLD_TAG + name not in run.tags]

    def tell(self, record: dg.RunRecord, ui: str) -> bool:
        """Whether every notifier has been told of it now."""
        done, notice = True, None
        for name in self.untold(record.dagster_run):
            down = self._state.down.get(name)
            if self._left[name] <= 0 or (down and now() < down.until):
                done = False
                continue
            notice = notice or notice_of(self._context.instance, record, ui)
            if self._tells(name, notice):
                self._mark(notice, name, datetime.now(UTC).isoformat(timespec="seconds"))
                self.told += 1
            elif now() - (record.end_time or now()) > _GIVE_UP_S:
                self._context.log.error(f"{name} was never told of {notice.text}")
                self._mark(notice, name, "given up")
            else:
                done = False
        return done

    def _tells(self, name: str, notice: Notice) -> bool:
        began = time.monotonic()
        try:
            self._notifiers[name].tell(notice)
        except Exception as error:  # noqa: BLE001 - whatever ails a notifier, it is told of
            before = self._state.down.get(name, _Down())
            wait = min(_BACK_OFF_S * 2.0 ** min(before.times, 16), _LONGEST_BACK_OFF_S)
            # What other errors say may hold the notifier's secrets.
            said = f": {error}" if isinstance(error, NoticeError) else ""
            why = type(error).__name__ + said
            self._state.down[name] = _Down(times=before.times + 1, until=now() + wait, why=why)
            self._context.log.warning(f"{name} could not be told of {notice.run_id}: {why}")
            return False
        finally:
            self._left[name] -= time.monotonic() - began
        self._state.down.pop(name, None)
        return True

    def _mark(self, notice: Notice, name: str, when: str) -> None:
        self._context.instance.add_run_tags(notice.run_id, {TOLD_TAG + name: when})


def failure_sensor(options: Notify, names: Sequence[str]) -> dg.SensorDefinition:
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
        teller = _Teller(context, notifiers, state)
        waiting = []
        for record in list(_failed(context.instance, state)):
            run = record.dagster_run
            if not teller.untold(run) or (_is_retried(run) and not options.retried):
                continue
            if not teller.tell(record, options.ui):
                waiting.append(run.run_id)
        # Those that were not tried come first next time: one that a notifier does not take must
        # not keep the others from it.
        state.waiting = [*waiting[1:], *waiting[:1]]
        state.since = started
        told = [f"{name} is down: {down.why}" for name, down in state.down.items()]
        return dg.SensorResult(
            skip_reason="; ".join(
                [f"{teller.told} notices sent, {len(waiting)} runs still to be told", *told]
            ),
            cursor=state.model_dump_json(),
        )

    return failure_sensor
