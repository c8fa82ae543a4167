"""Folding by the lake's clusters of near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laion_assets.knn.query import subset_beside
from laion_assets.knn.samples import Located, Samples
from laion_assets.lake import LocalLake
from laion_assets.layout import NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.segment import BY_SAMPLE, SAMPLE_CLUSTER
from laion_assets.search.clusters import Cluster, Clusters
from laion_assets.search.filters import Filters
from laion_assets.search.find import Result, find, fold
from laion_assets.search.live_index import IndexVersion
from tests.search.conftest import SECOND, SmallLake

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


def test_a_file_is_opened_once_and_again_when_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    load = np.load

    def counted(path: Path, **options: Any) -> Any:
        opened.append(path.name)
        return load(path, **options)

    monkeypatch.setattr(np, "load", counted)
    lake = LocalLake.at(tmp_path)
    clusters = Clusters(lake)
    for cluster in (7, 8):
        with lake.publish(NEAR_DUPLICATES, KEY, inputs={}, code_version=f"{cluster}") as staging:
            np.save(staging.path / BY_SAMPLE, np.array([(5, cluster)], SAMPLE_CLUSTER))
        opened.clear()
        assert [clusters.of([located(5)]) for _ in range(3)] == [[cluster]] * 3
        assert opened == [BY_SAMPLE]


def test_each_result_is_looked_up_once_however_far_a_search_goes(small_lake: SmallLake) -> None:
    asked: list[int] = []

    class Counted(Clusters):
        def of(self, found: Sequence[Located]) -> list[Cluster]:
            asked.extend(one.value("SAMPLE_ID") for one in found)
            return super().of(found)

    subsets = subset_beside(small_lake.index)
    version = IndexVersion(small_lake.index, "newest", subsets)
    vector = small_lake.model.encode_texts(["a picture"])[0]
    found = find(
        *(version, Samples(subsets), vector, "image", 4, Filters(crawl=SECOND.crawl)),
        fold_above=0.99,
        max_candidates=100,
        clusters=Counted(small_lake.lake),
    )
    assert found.looked_at > 4 * 2
    assert len(asked) == len({*asked}) >= 4
