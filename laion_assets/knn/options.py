"""How kNN indices are built and how their quality is judged."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from laion_assets.options import Options

FLAT_KINDS: Final = ("flat", "flat_fp16")

Kind = Literal["auto", "flat", "flat_fp16", "ivf_sq8", "ivf_rabitq", "ivf_pq"]


class IndexOptions(Options):
    """Options of the indices, of the codec they share, and of the check of their recall."""

    kind: Kind = Field(
        "auto",
        description=(
            "flat: float32 vectors, exact. flat_fp16: float16 vectors, half the size; the stored "
            "embeddings are float16 already, so nothing is lost. ivf_sq8: inverted lists of one "
            "byte a dimension. ivf_rabitq: of one bit a dimension. ivf_pq: of product-quantised "
            "codes, down to 8 bytes a vector. auto: flat until `index_codec` has been made, then "
            "the largest of these whose codes fit `memory_gb`"
        ),
    )
    dimension: int = Field(
        512, ge=1, description="Width of the vectors, used only where a subset has none to tell it"
    )
    flat_below: int = Field(
        200_000, ge=0, description="Up to so many vectors, auto stays exact: brute force is quick"
    )
    memory_gb: float = Field(
        16.0, gt=0, description="GB (10^9) that the codes of each of the two indices may take"
    )
    vectors: int | None = Field(
        None,
        ge=1,
        description=(
            "How many vectors the codec is made for; null: four times those there at training"
        ),
    )
    cells: int | None = Field(
        None, ge=1, description="Inverted lists; null: by `vectors`, and as the sample allows"
    )
    train_vectors: int = Field(
        2_000_000, ge=1, description="At most so many vectors are sampled to train the codec"
    )
    train_seed: int = Field(0, ge=0, description="Seed of that sample and of the training")
    max_drift: float = Field(
        1.15,
        ge=1,
        description=(
            "Retraining is asked for when a segment's vectors lie so many times as far from their "
            "cells' centres as the training sample did"
        ),
    )
    max_imbalance: float = Field(
        2.0,
        ge=1,
        description=(
            "Retraining is asked for when the lists of the whole index are so many times as "
            "unequal as those of the training sample"
        ),
    )
    rerank: bool = Field(
        True,
        description=(
            "Score the best candidates again with the subset's own vectors, memory-mapped from "
            "disk: exact scores, and a high recall from small codes"
        ),
    )
    min_recall: float = Field(
        0.95, ge=0, le=1, description="Lowest recall against brute force that passes the check"
    )
    tune_recall: float = Field(
        0.97, ge=0, le=1, description="Recall that search parameters are chosen for"
    )
    recall_queries: int = Field(200, ge=1, description="Recall queries, for each modality")
    recall_seed: int = Field(0, ge=0, description="Seed of the sample of recall queries")
    merge_every: int = Field(
        8, ge=2, description="So many runs of a level of `search_index` become one of the next"
    )
    max_dropped: float = Field(
        0.25,
        ge=0,
        le=1,
        description=(
            "A run whose share of vectors that were made anew is above this is written without "
            "them; below, they stay in its file and are passed over. Samples that are gone are "
            "taken out at once"
        ),
    )
