"""Measures of how well pictures and captions find each other, by their unit embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating[Any]]


def recall(similarity: Vectors, top: int) -> float:
    """Share of rows whose own column, of the same number, is among the ``top`` most similar."""
    own = np.diagonal(similarity)[:, None]
    return float(((similarity > own).sum(1) < top).mean())


def auc(matched: Vectors, mismatched: Vectors) -> float:
    """Probability that a matched pair is more similar than a mismatched one; ties count half."""
    lower = np.searchsorted(np.sort(mismatched), matched, side="left")
    upper = np.searchsorted(np.sort(mismatched), matched, side="right")
    return float((lower + upper).mean() / 2 / len(mismatched))


def pair_cosines(images: Vectors, captions: Vectors) -> tuple[Vectors, Vectors]:
    """Cosines of each row with the same row, and of every row with every other row."""
    similarity = images @ captions.T
    return np.diagonal(similarity), similarity[~np.eye(len(images), dtype=bool)]


def judge(images: Vectors, captions: Vectors) -> dict[str, float]:
    """All figures of pictures (n, d) and their captions (n, d), rounded to four decimal places."""
    similarity = images @ captions.T
    matched, mismatched = pair_cosines(images, captions)
    figures = {
        "pairs": float(len(images)),
        "auc": auc(matched, mismatched),
        "image_to_text_recall_1": recall(similarity, 1),
        "image_to_text_recall_10": recall(similarity, 10),
        "text_to_image_recall_1": recall(similarity.T, 1),
        "text_to_image_recall_10": recall(similarity.T, 10),
        "matched_cosine_p05": float(np.quantile(matched, 0.05)),
        "matched_cosine_median": float(np.median(matched)),
        "mismatched_cosine_median": float(np.median(mismatched)),
        "mismatched_cosine_p95": float(np.quantile(mismatched, 0.95)),
        "mismatched_cosine_p99": float(np.quantile(mismatched, 0.99)),
    }
    return {name: round(value, 4) for name, value in figures.items()}
