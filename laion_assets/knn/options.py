"""Options of the kNN indices: how they are built and how their quality is judged."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from laion_assets.options import Options

FLAT_KINDS: Final = ("flat", "flat_fp16")

Kind = Literal["auto", "flat", "flat_fp16", "ivf_sq8", "ivf_rabitq", "ivf_pq"]


class IndexOptions(Options):
    """Options of the indices, of the codec that they share, and of their recall check."""

    kind: Kind = Field(
        "auto",
        description=(
            "flat: float32 vectors, exact. flat_fp16: float16 vectors, half the size; the stored "
            "embeddings are float16 already, so nothing is lost. ivf_sq8: inverted lists with one "
            "byte per dimension. ivf_rabitq: with one bit per dimension. ivf_pq: with "
            "product-quantised codes, down to 8 bytes per vector. auto: flat until `index_codec` "
            "exists, then the largest of these codes that fits into `memory_gb`"
        ),
    )
    dimension: int = Field(
        512, ge=1, description="Width of the vectors; used only for a subset without any vectors"
    )
    flat_below: int = Field(
        200_000,
        ge=0,
        description="Largest number of vectors for which auto stays exact: brute force is fast",
    )
    memory_gb: float = Field(
        16.0, gt=0, description="GB (10^9 bytes) for the codes of each of the two indices"
    )
    vectors: int | None = Field(
        None,
        ge=1,
        description=(
            "Number of vectors that the codec is designed for; null takes four times the number "
            "available at training"
        ),
    )
    cells: int | None = Field(
        None,
        ge=1,
        description="Number of inverted lists; null chooses it from `vectors` and the sample size",
    )
    train_vectors: int = Field(
        2_000_000, ge=1, description="Largest number of vectors sampled to train the codec"
    )
    train_seed: int = Field(0, ge=0, description="Seed of that sample and of the training")
    max_drift: float = Field(
        1.15,
        ge=1,
        description=(
            "Recommend retraining when a segment's vectors lie this many times as far from their "
            "cells' centres as the training sample did"
        ),
    )
    max_imbalance: float = Field(
        2.0,
        ge=1,
        description=(
            "Recommend retraining when the whole index's lists are this many times as unequal in "
            "size as those of the training sample"
        ),
    )
    rerank: bool = Field(
        True,
        description=(
            "Score the best candidates again with the subset's own vectors, read from "
            "disk: gives exact scores, and a high recall from small codes"
        ),
    )
    min_recall: float = Field(
        0.95, ge=0, le=1, description="Lowest recall against brute force that passes the check"
    )
    tune_recall: float = Field(
        0.97,
        ge=0,
        le=1,
        description="Recall that the search parameters are chosen to reach. They are chosen again "
        "when it is no longer reached, or the index has grown by a fifth",
    )
    recall_queries: int = Field(200, ge=1, description="Recall queries per modality")
    recall_seed: int = Field(0, ge=0, description="Seed of the sample of recall queries")
    merge_every: int = Field(
        8,
        ge=2,
        description="Number of index runs of one level of `search_index` that are merged into one "
        "run of the next level",
    )
    max_dropped: float = Field(
        0.25,
        ge=0,
        le=1,
        description=(
            "Largest share of a run's vectors that may be outdated, because their segment was "
            "rebuilt, before the run is rewritten without them. Until then they stay in its files "
            "and are skipped. Samples that were removed are taken out at once"
        ),
    )
