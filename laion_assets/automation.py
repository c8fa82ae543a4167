"""When the aggregates over all segments, and the further subsets, are made again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dagster as dg

from laion_assets.jobs import AGGREGATES, subset_asset


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


def follow_scores() -> dg.AutomationCondition[Any]:
    """Ask for a further subset's segment once the scores it is taken from were made anew.

    A new or changed recipe asks for nothing by itself: all segments at once is a person's choice.
    """
    scores = dg.AssetSelection.assets("scored_pairs")
    return (
        dg.AutomationCondition.any_deps_updated().allow(scores).since_last_handled()
        & ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label("its scores were made anew")


def follow_sensor(subsets: Iterable[str] = ()) -> dg.AutomationConditionSensorDefinition:
    further = [subset_asset(name) for name in subsets]
    return dg.AutomationConditionSensorDefinition(
        "follow_upstream",
        target=dg.AssetSelection.assets(*AGGREGATES, *further),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=10,
        description="Makes the aggregates and the further subsets again when segments have been.",
    )
