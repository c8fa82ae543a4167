"""The lake as a resource."""

from __future__ import annotations

import dagster as dg

from laion_assets.lake import Lake, LakeOptions, open_lake


class LakeResource(LakeOptions, dg.ConfigurableResource[Lake]):
    """Where every artifact is read and published."""

    def open(self) -> Lake:
        return open_lake(self)
