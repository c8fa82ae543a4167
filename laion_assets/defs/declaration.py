"""What an asset declares of itself: once, in its own module.

Retries, automation, freshness, check specifications and the job of the aggregates are derived from
it. What does not belong here: what an asset is made of (`deps`, in its ``@dg.asset``) and which
files it holds (:mod:`laion_assets.layout`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypedDict

import dagster as dg
from pydantic import BaseModel

from laion_assets.defs.automation import follow_inputs, follow_upstream
from laion_assets.defs.checks import check_specs
from laion_assets.defs.code_version import code_version
from laion_assets.defs.metadata import definition_metadata
from laion_assets.settings import Settings


class Arguments(TypedDict):
    """Arguments of ``@dg.asset``."""

    name: str
    group_name: str
    partitions_def: dg.PartitionsDefinition[Any] | None
    code_version: str
    check_specs: list[dg.AssetCheckSpec]
    pool: str | None
    retry_policy: dg.RetryPolicy
    automation_condition: dg.AutomationCondition[Any] | None
    freshness_policy: dg.FreshnessPolicy | None
    metadata: Mapping[str, Any]
    owners: Sequence[str]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Asset:
    """One asset's place in the graph and in its schedule."""

    name: str
    group: str
    revision: int
    """Raised by hand when the same inputs give other results."""
    checks: tuple[str, ...] = ()
    """Names of its checks, in :data:`laion_assets.defs.checks.CHECKS`."""
    pool: str | None = None
    asks_network: bool = False
    """Whether it reads from others' servers, and so retries for longer."""
    aggregate: bool = False
    """Whether it is rebuilt once something upstream was, and belongs to the job `aggregates`."""
    fresh: bool = False
    """Whether days without a new materialization are a fault."""

    def named(self, name: str) -> Asset:
        """The same declaration under another name."""
        return replace(self, name=name)

    def arguments(
        self,
        settings: Settings,
        segments: dg.PartitionsDefinition[Any] | None = None,
        *,
        versioned: Sequence[BaseModel | str] = (),
    ) -> Arguments:
        """Return the arguments that the declaration and the settings decide.

        ``segments``: the partitions, if it has any. ``versioned``: the options, and digests of
        data, that change its results and so its code version.
        """
        return {
            "name": self.name,
            "group_name": self.group,
            "partitions_def": segments,
            "code_version": code_version(self.revision, *versioned),
            "check_specs": check_specs(self.name, self.checks),
            "pool": self.pool,
            "retry_policy": self._retries(settings),
            "automation_condition": (
                follow_upstream(settings.automation)
                if self.aggregate
                else follow_inputs(self.name, settings.automation)
            ),
            "freshness_policy": self._freshness(settings),
            "metadata": definition_metadata(self.name, settings.lake.root),
            "owners": settings.assets.owners,
            "tags": settings.assets.tags,
        }

    def _freshness(self, settings: Settings) -> dg.FreshnessPolicy | None:
        days = settings.automation.fresh_days
        if not days or not self.fresh:
            return None
        window = timedelta(days=days)
        return dg.FreshnessPolicy.time_window(window, window * 0.8)

    def _retries(self, settings: Settings) -> dg.RetryPolicy:
        retry = settings.retries.network if self.asks_network else settings.retries.local
        return dg.RetryPolicy(
            max_retries=retry.times,
            delay=retry.delay_s,
            backoff=dg.Backoff.EXPONENTIAL,
            jitter=dg.Jitter.PLUS_MINUS,
        )
