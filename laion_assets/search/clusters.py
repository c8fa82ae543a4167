"""The clusters of near-duplicates that results are in, as the lake has them now."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from laion_assets.knn.samples import Located
from laion_assets.lake import Lake
from laion_assets.layout import NEAR_DUPLICATES, SegmentKey
from laion_assets.near_duplicates.segment import BY_SAMPLE

Cluster = int | None


class Clusters:
    """Look-ups in the small sorted files of a lake's near-duplicates; without a lake, none."""

    def __init__(self, lake: Lake | None) -> None:
        self._lake = lake

    def of(self, found: Sequence[Located]) -> list[Cluster]:
        """The cluster of each sample; None where nothing is known of it."""
        clusters: list[Cluster] = [None] * len(found)
        by_segment: dict[tuple[str, str], list[int]] = {}
        for number, located in enumerate(found if self._lake else ()):
            key = located.value("crawl") or "", located.value("segment") or ""
            by_segment.setdefault(key, []).append(number)
        for (crawl, segment), numbers in by_segment.items():
            ids = np.array([found[number].value("SAMPLE_ID") for number in numbers], np.int64)
            for number, cluster in zip(numbers, self._in(crawl, segment, ids), strict=True):
                clusters[number] = cluster
        return clusters

    def _in(self, crawl: str, segment: str, ids: NDArray[np.int64]) -> list[Cluster]:
        assert self._lake
        try:
            folder = self._lake.folder(NEAR_DUPLICATES, SegmentKey(crawl, segment), BY_SAMPLE)
            held = np.load(folder / BY_SAMPLE, mmap_mode="r", allow_pickle=False)
        except (ValueError, FileNotFoundError):  # no segment of a lake, or it has none
            return [None] * len(ids)
        place = np.minimum(np.searchsorted(held["sample"], ids), max(0, len(held) - 1))
        if not len(held):
            return [None] * len(ids)
        same = held["sample"][place] == ids
        clusters = held["cluster"][place].tolist()
        return [of if known else None for of, known in zip(clusters, same.tolist(), strict=True)]
