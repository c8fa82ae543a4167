"""What happens automatically when a list has changed."""

from __future__ import annotations

from pydantic import Field

from laion_assets.options import Options


class RemovalOptions(Options):
    """Whether a changed list rebuilds partitions, and how often that is tried."""

    automatic: bool = Field(
        False,
        description="Rebuild the partitions that a changed list concerns, without a command",
    )
    attempts: int = Field(
        3, ge=1, description="Failed surveys after which a changed list is given up"
    )
