"""How kNN indices are built and how their quality is judged."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class IndexOptions(BaseModel, frozen=True):
    """Options of a segment's indices, and of the check of their recall."""

    kind: Literal["flat", "flat_fp16"] = Field(
        "flat",
        description=(
            "flat: float32 vectors, exact. flat_fp16: float16 vectors, half the size; the stored "
            "embeddings are float16 already, so nothing is lost"
        ),
    )
    dimension: int = Field(
        512, ge=1, description="Width of the vectors, used only where a subset has none to tell it"
    )
    min_recall: float = Field(
        0.95, ge=0, le=1, description="Lowest recall against brute force that passes the check"
    )
    recall_k: int = Field(10, ge=1, description="Neighbours a recall query asks for")
    recall_queries: int = Field(200, ge=1, description="Rows sampled as recall queries")
    recall_seed: int = Field(0, ge=0, description="Seed of the sample of recall queries")
