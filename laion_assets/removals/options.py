"""What happens by itself when a list has changed."""

from __future__ import annotations

from pydantic import Field

from laion_assets.options import Options


class RemovalOptions(Options):
    automatic: bool = Field(
        False,
        description="Make the partitions that a changed list concerns again without being asked",
    )
    attempts: int = Field(3, ge=1, description="Failed surveys after which a list is given up")
