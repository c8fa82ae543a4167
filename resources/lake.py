"""The lake as a resource."""

from __future__ import annotations

from laion_assets.lake import Lake, LakeOptions, open_lake
from resources.options import OptionsResource


class LakeResource(LakeOptions, OptionsResource[LakeOptions]):
    """Where every artifact is read and published."""

    def open(self) -> Lake:
        return open_lake(self.options())
