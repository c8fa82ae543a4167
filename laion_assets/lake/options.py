"""Options of the lake."""

from __future__ import annotations

from pydantic import Field

from laion_assets.options import MASKED, Options


class LakeOptions(Options):
    """Where the lake is."""

    root: str = Field(
        "lake",
        description=(
            "Folder of all artifacts, relative to the working directory; or s3://bucket/prefix"
        ),
    )
    cache: str = Field(
        "lake-cache",
        description="Local cache folder; used only when the lake is in an object store",
    )
    cache_gb: float | None = Field(
        50.0,
        gt=0,
        description="Size in GB above which copies that nobody uses are deleted; null keeps all",
    )
    storage_options: dict[str, str] = Field(
        default_factory=dict,
        description="Options of the object store, such as endpoint and region; keys belong into "
        "the environment",
        json_schema_extra=MASKED,
    )
    attempts: int = Field(
        8, ge=1, le=20, description="Attempts for each request to the object store"
    )
    checkpoint_s: float = Field(
        60.0,
        gt=0,
        description="Seconds between two copies of an unfinished partition to the object store",
    )
    busy_timeout_s: float = Field(
        120.0, gt=0, description="Seconds to wait for another process that makes the same partition"
    )
