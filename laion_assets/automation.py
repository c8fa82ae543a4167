"""When the aggregates over all segments are made again."""

from __future__ import annotations

from typing import Any

import dagster as dg

from laion_assets.jobs import AGGREGATES


def follow_upstream() -> dg.AutomationCondition[Any]:
    """Ask again once something upstream was made anew and nothing upstream is being made.

    Unlike ``eager()``, it does not wait for segments that nobody has asked for.
    """
    changed: dg.AutomationCondition[Any] = (
        dg.AutomationCondition.any_deps_updated() | dg.AutomationCondition.code_version_changed()
    )
    return (
        changed.since_last_handled()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label("something upstream was made anew")


def follow_sensor() -> dg.AutomationConditionSensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        "follow_upstream",
        target=dg.AssetSelection.assets(*AGGREGATES),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description="Makes the aggregates again when segments have been.",
    )
