"""Folding by the lake's clusters of near-duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from laion_assets.knn.samples import Located
from laion_assets.lake import LocalLake
from laion_assets.layout import NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.segment import BY_SAMPLE, SAMPLE_CLUSTER
from laion_assets.search.clusters import Clusters
from laion_assets.search.find import Result, fold

KEY = SegmentKey("CC-MAIN-2021-01", "00")


def located(sample_id: int, key: SegmentKey = KEY, sha256: str = "") -> Located:
    vector = np.eye(8, dtype=np.float32)[abs(sample_id) % 8]
    values = {
        "SAMPLE_ID": sample_id,
        "crawl": key.crawl,
        "segment": key.segment,
        "sha256": sha256 or f"{sample_id}",
    }
    return Located(values, {"image": vector})


def test_clusters_are_looked_up_in_their_segments(tmp_path: Path) -> None:
    lake = LocalLake.at(tmp_path)
    with lake.publish(NEAR_DUPLICATES, KEY, inputs={}, code_version="1") as staging:
        held = np.array([(-3, 7), (2, -1), (5, 7)], SAMPLE_CLUSTER)
        np.save(staging.path / BY_SAMPLE, held)
    other = SegmentKey(KEY.crawl, "01")
    asked = [located(5), located(-3), located(2, other), located(4), located(2)]
    assert Clusters(lake).of(asked) == [7, 7, None, None, -1]
    assert Clusters(None).of(asked) == [None] * 5


def test_images_of_one_cluster_are_folded_though_bytes_and_vectors_differ() -> None:
    results = [Result(row, 1 - row / 10, located(row)) for row in range(4)]
    folded = fold(results, "image", 0.9, [7, 8, 7, None])
    assert [(one.row, one.duplicates) for one in folded] == [(0, 1), (1, 0), (3, 0)]
    same = [Result(row, 1, located(row, sha256="a")) for row in range(2)]
    assert len(fold(same, "image", 0.9, [None, None])) == 1
