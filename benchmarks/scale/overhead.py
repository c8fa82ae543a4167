"""A segment's nine assets without any work: what remains is Dagster's overhead."""

from __future__ import annotations

import dagster as dg

import laion_assets.definitions  # noqa: F401 - to import what a real run imports
from laion_assets.defs.partitions import segment_partitions
from laion_assets.layout import SEGMENT_ASSETS


def _idle(name: str, before: str | None) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"idle_{name}",
        partitions_def=segment_partitions(100),
        deps=[f"idle_{before}"] if before else [],
    )
    def idle() -> None:
        pass

    return idle


defs = dg.Definitions(
    assets=[
        _idle(name, before)
        for name, before in zip(SEGMENT_ASSETS, (None, *SEGMENT_ASSETS), strict=False)
    ],
    executor=dg.in_process_executor,  # as in the project's own definitions
)
