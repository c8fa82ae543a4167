"""When two images count as copies of one picture."""

from __future__ import annotations

from pydantic import Field

from laion_assets.options import Options


class NearDuplicateOptions(Options):
    """Thresholds, chosen on planted copies (docs/near-duplicates.md)."""

    likeness: float = Field(
        0.96,
        gt=0,
        le=1,
        description="Lowest likeness of two copies: the cosine of their hashes",
    )
    embedding: float = Field(
        0.8,
        ge=-1,
        le=1,
        description="Lowest cosine of the CLIP embeddings of two copies, as far as their sketches"
        " say it; -1 compares the hashes alone",
    )
