"""What is rebuilt automatically, and what waits for a person.

A segment's first making is the crawl sensor's business (``sensors/new_crawls.py``), and a changed
list's consequences are the lists sensor's; here is what follows from changed data and code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import dagster as dg

from laion_assets.layout import INDEX_CODEC, LISTS, SUBSET_PREFIX
from laion_assets.settings import Automation

_NOT_FOLLOWED: Final = (*LISTS, INDEX_CODEC)
"""The lists have a sensor of their own, and a new codec concerns all segments at once."""


def follow_inputs(name: str, policy: Automation) -> dg.AutomationCondition[Any] | None:
    """Ask for a segment's asset again for the causes that the policy names; None: for none.

    Only partitions whose input's *content* has changed: an upstream partition that was rebuilt
    with the same bytes asks for nothing. What will be asked for in the same tick counts as well, so
    that a segment's assets are made one after another in one run.
    """
    further = name.startswith(SUBSET_PREFIX)
    outside = dg.AssetSelection.assets(*_NOT_FOLLOWED)
    conditions = dg.AutomationCondition
    causes: list[dg.AutomationCondition[Any]] = []
    if ("subsets" if further else name) in policy.inputs:
        changed = conditions.data_version_changed() | conditions.will_be_requested()
        causes.append(conditions.any_deps_match(changed).ignore(outside))
    if ("subsets" if further else name) in policy.code:
        causes.append(conditions.code_version_changed())
    if not causes:
        return None
    cause = causes[0] if len(causes) == 1 else causes[0] | causes[1]
    condition = (
        cause.since_last_handled()
        & ~conditions.any_deps_missing().ignore(outside)
        & ~conditions.any_deps_in_progress().ignore(outside)
        & ~conditions.in_progress()
    )
    # What was never made is the crawl sensor's to ask for; a further subset is nobody's.
    return (condition if further else condition & ~conditions.missing()).with_label(
        "an input or the code has changed"
    )


def follow_upstream(policy: Automation) -> dg.AutomationCondition[Any]:
    """Rebuild an aggregate once something upstream was rebuilt and nothing upstream is
    being made; while segments are being made all the time, once a day.

    Unlike ``eager()``, it does not wait for segments that nobody has asked for.
    """
    conditions = dg.AutomationCondition
    changed: dg.AutomationCondition[Any] = (
        conditions.any_deps_updated() | conditions.code_version_changed()
    )
    its_time: dg.AutomationCondition[Any] = conditions.cron_tick_passed(policy.aggregates_at)
    return (
        changed.since_last_handled()
        & (~conditions.any_deps_in_progress() | its_time.since_last_handled())
        & ~conditions.in_progress()
    ).with_label("something upstream was rebuilt")


def follow_sensor(assets: Iterable[str]) -> dg.AutomationConditionSensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        "follow_upstream",
        target=dg.AssetSelection.assets(*assets),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description="Rebuilds assets whose inputs or code have changed, as [automation] allows.",
    )
